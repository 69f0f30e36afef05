"""Shared fixtures live in tests/support, a module per topic."""

import os

# Tests run side by side and start processes of their own: more threads than cores only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins: list[str] = [
    "tests.support.servers",
    "tests.support.databases",
    "tests.support.api",
]
