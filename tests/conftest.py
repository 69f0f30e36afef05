"""Shared fixtures live in tests/support, a module per topic."""

pytest_plugins: list[str] = [
    "tests.support.servers",
    "tests.support.databases",
    "tests.support.api",
]
