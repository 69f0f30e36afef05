"""Render a stranger's chat template once, in a process that may be killed, before the model is accepted.

The sandbox of Jinja keeps a template from touching the system, but not from looping for hours or writing gigabytes,
and a decoder renders it for every request.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

from armature.errors import ArmatureError, InvalidCheckpoint
from armature.modeling.loading import load_tokenizer
from armature.modeling.prompts import encode_chat

CPU_SECONDS = 2
MAX_TOKENS = 100_000
_WALL_SECONDS = 120
_SAMPLE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]


def probe_chat_template(folder: Path) -> None:
    """Render the folder's chat template for one and for three messages under limits of time and size.

    Raises:
        InvalidCheckpoint: It fails, takes too long or writes too much.
    """
    command = [sys.executable, "-m", __name__, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_WALL_SECONDS, check=False)
        reason = done.stdout.strip() or "it takes too long" if done.returncode else ""
    except subprocess.TimeoutExpired:
        reason = "it takes too long"
    if reason:
        raise InvalidCheckpoint(f"the chat template is not usable: {reason}", param="chat_template.jinja")


def _render(folder: Path) -> str:
    tokenizer = load_tokenizer(folder)
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
    try:
        longest = max(len(encode_chat(tokenizer, _SAMPLE[:count])) for count in (1, 3))
    except ArmatureError as error:
        return error.message
    return "" if longest <= MAX_TOKENS else f"it writes more than {MAX_TOKENS} tokens"


if __name__ == "__main__":
    reason = _render(Path(sys.argv[1]))
    print(reason)
    sys.exit(bool(reason))
