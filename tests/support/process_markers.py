"""Markers ``server`` and ``process``: which tests start processes, kept true by watching the processes they start.

``server`` is given by itself to a test whose fixtures start a shared server. Any other test that starts a process
needs ``@pytest.mark.process``, or fails here. Only programs of the virtual environment count, not those that libraries
run to look at the machine; and not the children that render chat templates, which cost little.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

SERVER_FIXTURES = {"postgres_server", "valkey_server", "redis_server", "s3_server", "decoder_process"}
SERVER_PARAMETERS = SERVER_FIXTURES | {"postgres", "s3"}
"""Values that parametrised fixtures look up by name: they are in no test's list of fixtures."""
STARTING = ("server", "process", "e2e", "faults")
CHEAP = "armature.modeling.tokenization.chat_templates"

_unmarked: list[str] = []
"""What the running test started without a marker for it."""
_is_watching = False


def starts_server(item: pytest.Item) -> bool:
    """Whether a fixture of the test starts a server."""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return not SERVER_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())) or any(
        isinstance(value, str) and value in SERVER_PARAMETERS for value in values
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests before ``-m`` selects among them."""
    for item in items:
        if starts_server(item):
            item.add_marker("server")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    """Watch the processes that an unmarked test starts, its fixtures included."""
    global _is_watching
    _is_watching = not any(item.get_closest_marker(name) for name in STARTING)
    try:
        return (yield)
    finally:
        _is_watching = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[Any]:
    """Fail an unmarked test that started a process."""
    try:
        result = yield
    finally:
        started, _unmarked[:] = list(_unmarked), []
    assert not started, f"started {started}: give the test @pytest.mark.process"
    return result


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen" and _is_watching:
        command = [str(part) for part in arguments[1]]
        if command[0].startswith(sys.prefix) and CHEAP not in command:
            _unmarked.append(" ".join(command)[:200])


sys.addaudithook(_note)
