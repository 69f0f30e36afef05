"""Figures by step in a CSV file that is saved with checkpoints and ends in the artifact."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Sequence
from pathlib import Path


class CsvLog:
    """A CSV file with one row per step; the first column is the step, an unknown figure is an empty cell."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self._columns = columns

    def append(self, step: int, values: Sequence[float]) -> None:
        """Add a row with one value per column; write nothing if there are no columns."""
        if not self._columns:
            return
        cells = ["" if math.isnan(value) else f"{value:.6g}" for value in values]
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if is_new:
                writer.writerow(["step", *self._columns])
            writer.writerow([step, *cells])

    def restore(self, folder: Path) -> None:
        """Continue from the rows in a checkpoint's folder."""
        saved = folder / self.path.name
        if saved.exists():
            shutil.copy(saved, self.path)
