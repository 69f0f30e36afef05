"""Untrusted chat templates, rendered in a child process with limits on CPU time, memory and length.

Jinja's sandbox keeps a template from touching the system, but not from looping for hours or exhausting memory, perhaps
for one dialogue in a thousand. No analysis of the template can rule that out, so every rendering is bounded. The child
imports no torch, starts in about a second, and then renders in well under a millisecond.
"""

from __future__ import annotations

import datetime
import json
import resource
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, TextIO

from armature.contracts.chat import TEMPLATE_DATE
from armature.errors import InvalidCheckpoint
from armature.modeling.tokenization.dialogues import Messages

CPU_SECONDS = 2.0
MAX_BYTES = 2 << 30
MAX_CHARS = 1_000_000
_CHARS_PER_CHAR = 8
"""A template may repeat and escape the dialogue."""
_DIALOGUE = [{"role": role, "content": "text"} for role in ("user", "assistant", "user")]


class TemplateFailed(Exception):
    """The template refuses the dialogue, fails on it, or exceeds a limit."""


class ChatTemplate:
    """A template and its child process, started at first use and again after a kill. Not thread-safe."""

    def __init__(self, template: str, special_tokens: dict[str, Any]) -> None:
        self.text = template
        self._setup = json.dumps({"template": template, "special_tokens": special_tokens}) + "\n"
        self._process: subprocess.Popen[str] | None = None

    def render(
        self,
        messages: Messages,
        variables: Mapping[str, Any] = MappingProxyType({}),
        *,
        date: str = TEMPLATE_DATE,
        answered: bool = False,
    ) -> str:
        """Render a dialogue as text.

        Args:
            messages: The dialogue.
            variables: The template's own variables.
            date: What ``strftime_now`` takes for today, in ISO form: the clock would change a seed's answer.
            answered: Whether the dialogue ends with its answer; else it ends with the generation prompt.

        Raises:
            TemplateFailed: The message is the reason.
        """
        request = {"messages": messages, "variables": dict(variables), "date": date, "answered": answered}
        try:
            answer = self._request_line(json.dumps(request) + "\n")
        except OSError:
            answer = ""
        if not answer:  # the child was killed by its CPU limit
            self.close()
            raise TemplateFailed("it takes too long")
        result = json.loads(answer)
        if result["problem"]:
            raise TemplateFailed(result["problem"])
        return str(result["text"])

    def close(self) -> None:
        """Kill the child process, if there is one."""
        if self._process is not None:
            self._end()
            self._process = None

    def _request_line(self, line: str) -> str:
        if self._process is None:
            command = [sys.executable, "-m", __name__]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            self._end = weakref.finalize(self, _end, self._process)
            line = self._setup + line
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()
        return self._process.stdout.readline()


def probe_chat_template(template: str, special_tokens: dict[str, Any]) -> None:
    """Check a template by rendering dialogues of one and of three messages.

    Raises:
        InvalidCheckpoint: The template fails, takes too long or writes too much.
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


def _format(date: datetime.datetime, form: str) -> str:
    return date.strftime(form)


def _serve(requests: TextIO, answers: TextIO) -> None:
    """Run the child: read the template, then one dialogue per line, and answer each with one line."""
    from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    setup = json.loads(requests.readline())
    for line in requests:
        text, problem, request = "", "", json.loads(line)
        today = datetime.datetime.fromisoformat(request["date"])
        variables = {**request["variables"], **setup["special_tokens"]}
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # SIGPROF kills the process, even inside a C function
        try:
            _compile_jinja_template(setup["template"]).globals["strftime_now"] = partial(_format, today)
            (text,), _ = render_jinja_template(
                [request["messages"]],
                chat_template=setup["template"],
                add_generation_prompt=not request["answered"],
                **variables,
            )
        except Exception as error:  # a template can raise anything
            problem = f"{type(error).__name__}: {error}"[:500]
        signal.setitimer(signal.ITIMER_PROF, 0)
        if len(text) > MAX_CHARS + _CHARS_PER_CHAR * len(line):
            text, problem = "", f"it writes {len(text)} characters"
        answers.write(json.dumps({"text": text, "problem": problem}) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(sys.stdin, sys.stdout)
