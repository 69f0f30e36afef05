"""A stranger's chat template runs in a process of its own, under limits of processor time, memory and length.

The sandbox of Jinja keeps a template from touching the system, but not from looping for hours or filling the memory,
and it may do so for one dialogue in a thousand. No look at the template can tell, so every rendering is bounded. The
child imports no torch, starts in about a second, and then renders in well under a millisecond.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import weakref
from typing import Any, TextIO

from armature.errors import InvalidCheckpoint

CPU_SECONDS = 2.0
MAX_BYTES = 2 << 30
MAX_CHARS = 1_000_000
_CHARS_PER_CHAR = 8
"""A template may say the dialogue more than once, and escape it."""
_DIALOGUE = [{"role": role, "content": "text"} for role in ("user", "assistant", "user")]

Messages = list[dict[str, str]]


class TemplateFailed(Exception):
    """The template refuses the dialogue, fails on it, or goes beyond a limit."""


class ChatTemplate:
    """One template and its process, which starts at the first use and again after it was killed. Not thread-safe."""

    def __init__(self, template: str, special_tokens: dict[str, Any]) -> None:
        self.text = template
        self._request = json.dumps({"template": template, "special_tokens": special_tokens}) + "\n"
        self._process: subprocess.Popen[str] | None = None

    def render(self, messages: Messages) -> str:
        """The dialogue as text, up to where the assistant begins to speak.

        Raises:
            TemplateFailed: With the reason.
        """
        try:
            answer = self._ask(json.dumps(messages) + "\n")
        except OSError:
            answer = ""
        if not answer:  # killed
            self.close()
            raise TemplateFailed("it takes too long")
        result = json.loads(answer)
        if result["problem"]:
            raise TemplateFailed(result["problem"])
        return str(result["text"])

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._end()
            self._process = None

    def _ask(self, line: str) -> str:
        if self._process is None:
            command = [sys.executable, "-m", __name__]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            self._end = weakref.finalize(self, _end, self._process)
            line = self._request + line
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()
        return self._process.stdout.readline()


def probe_chat_template(template: str, special_tokens: dict[str, Any]) -> None:
    """Render the template for one message and for three before its model is accepted.

    Raises:
        InvalidCheckpoint: It fails, takes too long or writes too much.
    """
    probed = ChatTemplate(template, special_tokens)
    try:
        for dialogue in (_DIALOGUE[:1], _DIALOGUE):
            probed.render(dialogue)
    except TemplateFailed as error:
        raise InvalidCheckpoint(f"the chat template is not usable: {error}", param="chat_template.jinja") from error
    finally:
        probed.close()


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    with process:  # closes the pipes and waits
        pass


def _serve(requests: TextIO, answers: TextIO) -> None:
    """The child: the template in the first line, then a dialogue a line, each answered by a line."""
    from transformers.utils.chat_template_utils import render_jinja_template

    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    request = json.loads(requests.readline())
    for line in requests:
        text, problem = "", ""
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal kills: nothing in Python has to notice it
        try:
            (text,), _ = render_jinja_template(
                [json.loads(line)],
                chat_template=request["template"],
                add_generation_prompt=True,
                **request["special_tokens"],
            )
        except Exception as error:  # a template may fail in any way
            problem = f"{type(error).__name__}: {error}"[:500]
        signal.setitimer(signal.ITIMER_PROF, 0)
        if len(text) > MAX_CHARS + _CHARS_PER_CHAR * len(line):
            text, problem = "", f"it writes {len(text)} characters"
        answers.write(json.dumps({"text": text, "problem": problem}) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(sys.stdin, sys.stdout)
