"""What recipes are tested with: a context on local folders, and data sets' files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from armature_worker.context.local import LocalContext, as_input

__all__ = ["LocalContext", "as_input", "write_rows"]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """A data set's file: one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
