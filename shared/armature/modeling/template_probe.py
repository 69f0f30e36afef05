"""Render a stranger's chat template once, in a process that may be killed, before the model is accepted.

The sandbox of Jinja keeps a template from touching the system, but not from looping for hours or filling the memory,
and a decoder renders it for every request. The child process imports no torch and takes about a second.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from typing import Any

from armature.errors import InvalidCheckpoint

CPU_SECONDS = 2
MAX_BYTES = 2 << 30
MAX_CHARS = 1_000_000
_WALL_SECONDS = 60
_DIALOGUE = [{"role": role, "content": "text"} for role in ("user", "assistant", "user")]


def probe_chat_template(template: str, special_tokens: dict[str, Any]) -> None:
    """Render the template for one message and for three, under limits of time, memory and length.

    Raises:
        InvalidCheckpoint: It fails, takes too long or writes too much.
    """
    request = json.dumps({"template": template, "special_tokens": special_tokens})
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=request,
            capture_output=True,
            text=True,
            timeout=_WALL_SECONDS,
            check=False,
        )
        reason = "it takes too long" if done.returncode < 0 else (done.stdout or done.stderr).strip()[-500:]
        failed = done.returncode != 0
    except subprocess.TimeoutExpired:
        reason, failed = "it takes too long", True
    if failed:
        raise InvalidCheckpoint(f"the chat template is not usable: {reason}", param="chat_template.jinja")


def _render(template: str, special_tokens: dict[str, Any]) -> str:
    """What is wrong with the template, or nothing."""
    from transformers.utils.chat_template_utils import render_jinja_template

    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    try:
        rendered, _ = render_jinja_template(
            [_DIALOGUE[:1], _DIALOGUE], chat_template=template, add_generation_prompt=True, **special_tokens
        )
    except Exception as error:  # a template may fail in any way
        return f"{type(error).__name__}: {error}"
    longest = max(len(text) for text in rendered)
    return f"it writes {longest} characters for three short messages" if longest > MAX_CHARS else ""


if __name__ == "__main__":
    problem = _render(**json.load(sys.stdin))
    print(problem)
    sys.exit(bool(problem))
