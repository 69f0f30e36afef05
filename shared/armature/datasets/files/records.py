"""A row of a file as its columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Record:
    """A row: its line, or its number in a file without lines, and its columns by name."""

    number: int
    columns: Mapping[str, Any]
