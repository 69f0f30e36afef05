"""The synchronous client is the asynchronous one without ``await``.

``python -m tests.support.synchronous`` writes it; a test compares.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

CLIENT = Path(__file__).resolve().parents[2] / "shared/armature/client"
SOURCE, TARGET = CLIENT / "aio", CLIENT / "sync"

_WORDS = {
    "aio": "sync",
    "asyncio": "time",
    "asynchronous": "synchronous",
    "asynccontextmanager": "contextmanager",
    "aclose": "close",
    "aread": "read",
    "aiter_sse": "iter_sse",
    "aiter_bytes": "iter_bytes",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
}
_DROPPED = {"async", "await"}


def sources() -> dict[str, str]:
    """The synchronous modules by file name, as ruff formats them."""
    return {path.name: _formatted(_without_await(path.read_text()), path.name) for path in sorted(SOURCE.glob("*.py"))}


def _without_await(source: str) -> str:
    """The source with its words replaced and the two keywords taken out, with the blank that follows each."""
    lines = source.splitlines(keepends=True)
    for token in reversed(list(tokenize.generate_tokens(io.StringIO(source).readline))):
        if token.type not in (tokenize.NAME, tokenize.STRING) or token.start[0] != token.end[0]:
            if token.type == tokenize.STRING:
                _replace_in_docstring(lines, token)
            continue
        row, (start, end) = token.start[0] - 1, (token.start[1], token.end[1])
        line = lines[row]
        if token.string in _DROPPED and token.type == tokenize.NAME:
            lines[row] = line[:start] + line[end:].removeprefix(" ")
        else:
            lines[row] = line[:start] + _plain(token.string) + line[end:]
    return "".join(lines)


def _replace_in_docstring(lines: list[str], token: tokenize.TokenInfo) -> None:
    for row in range(token.start[0] - 1, token.end[0]):
        lines[row] = _plain(lines[row])


def _plain(text: str) -> str:
    if text in _WORDS:
        return _WORDS[text]
    text = text.replace("asynchronous", "synchronous")
    return text.replace("Async", "")


def _formatted(source: str, name: str) -> str:
    for arguments in (["check", "--fix", "--quiet", "--select", "I"], ["format", "--quiet"]):
        command = [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", str(TARGET / name), "-"]
        source = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    return source


def written() -> Iterator[Path]:
    """Write the modules; those that changed."""
    TARGET.mkdir(exist_ok=True)
    for name, source in sources().items():
        path = TARGET / name
        if not path.exists() or path.read_text() != source:
            path.write_text(source)
            yield path


if __name__ == "__main__":
    for changed in written():
        print(changed.relative_to(CLIENT))
