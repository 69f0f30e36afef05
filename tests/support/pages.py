"""Tables of the documentation's pages."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def table_rows(page: str, columns: tuple[str, ...]) -> list[list[str]]:
    """Return the cells of each row below a header of these ``columns``, from all such tables of ``page``."""
    rows: list[list[str]] = []
    inside = False
    for line in (ROOT / page).read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        if not cells:
            inside = False
        elif tuple(cells) == columns:
            inside = True
        elif inside and not all(set(cell) <= {"-", ":"} for cell in cells):
            rows.append(cells)
    return rows
