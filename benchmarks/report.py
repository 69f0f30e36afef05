"""Prints a benchmark's report and describes the machine in it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

_FAST_BFLOAT16 = ("avx512_bf16", "amx_bf16")


def emit(report: Mapping[str, Any], as_json: bool) -> None:
    """Print a report as JSON, or as a table of its figures."""
    if as_json:
        print(json.dumps(report, indent=2))
        return
    table = Table("figure", "value")
    for name, value in _flat(report):
        table.add_row(name, f"{value:.3g}" if isinstance(value, float) else str(value))
    Console().print(table)


def describe_machine(device: str) -> dict[str, Any]:
    """Describe what the figures depend on: device, cores, threads, versions; no host name."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "fast_bfloat16": has_fast_bfloat16(device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def has_fast_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _FAST_BFLOAT16)


def _flat(report: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in report.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
