"""Shared fixtures live in tests/support, a module per topic."""

import gc
import os
import sys

import hypothesis
import pytest

# Tests run side by side and start processes of their own: more threads than cores only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Hundreds of processes start; without its compiled files each would compile the whole project once more.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# How long an example takes depends on what runs beside it.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

gc.disable()  # until everything is imported: there is nothing to find meanwhile

pytest_plugins: list[str] = [
    "tests.support.process_markers",
    "tests.support.servers",
    "tests.support.databases",
    "tests.support.api",
]


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Tests leave garbage, imports do not: the collector need not look through all modules time and again."""
    gc.enable()
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole platforms first: the tests at the end, which processes take from each other, are then short ones."""
    items.sort(key=lambda item: not any(item.iter_markers("e2e")) and not any(item.iter_markers("faults")))
