"""Figures by step as a CSV file that grows with training, travels with its checkpoints and ends in the artifact."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Sequence
from pathlib import Path


class Series:
    """One row a step; the first column is the step, an unknown figure is an empty cell."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self._columns = columns

    def append(self, step: int, values: Sequence[float]) -> None:
        """Add a row, of one value per column; nothing where there are no columns."""
        if not self._columns:
            return
        cells = ["" if math.isnan(value) else f"{value:.6g}" for value in values]
        fresh = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if fresh:
                writer.writerow(["step", *self._columns])
            writer.writerow([step, *cells])

    def restore(self, folder: Path) -> None:
        """Go on from the rows that a checkpoint's folder holds."""
        saved = folder / self.path.name
        if saved.exists():
            shutil.copy(saved, self.path)
