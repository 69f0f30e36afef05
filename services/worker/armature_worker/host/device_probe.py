"""``python -m armature_worker.host.device_probe``: print CUDA devices and their memory as JSON.

A process of its own: the query loads torch and opens a context on every device, and only the end of the process frees
them.
"""

from __future__ import annotations

import json

import torch


def main() -> None:
    """Print ``{"cuda:0": [free, total], ...}`` in bytes; a device too full for a context has none free."""
    print(json.dumps({f"cuda:{number}": _memory(number) for number in range(torch.cuda.device_count())}))


def _memory(number: int) -> tuple[int, int]:
    try:
        return torch.cuda.mem_get_info(number)
    except RuntimeError:
        return 0, torch.cuda.get_device_properties(number).total_memory


if __name__ == "__main__":
    main()
