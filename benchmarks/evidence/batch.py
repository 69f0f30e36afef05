"""Computes tables for several seeds and formats the results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence.experiment import Experiment, Figures
from benchmarks.evidence.laboratory import Laboratory
from benchmarks.evidence.tables import TABLES, Edit, Table


@dataclass(frozen=True)
class Row:
    """A variation of a table and its figures, seed by seed."""

    table: str
    variation: str
    seeds: tuple[int, ...]
    figures: tuple[Figures, ...]

    def as_json(self) -> dict[str, Any]:
        """Convert the row to JSON, with the means of its figures."""
        names = dict.fromkeys(name for figures in self.figures for name in figures)
        return {**asdict(self), "means": {name: statistics.fmean(self.values(name)) for name in names}}

    def values(self, figure: str) -> list[float]:
        """Values of one figure, seed by seed; seeds without that figure are left out."""
        return [figures[figure] for figures in self.figures if figure in figures]


def carry_out(
    tables: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    folder: Path,
    progress: Callable[[str], None] = lambda line: None,
) -> Iterator[Row]:
    """Compute tables row by row; results found in ``folder`` are not computed again."""
    torch.set_num_threads(1)  # of models this small, threads mostly wait for each other
    laboratory = Laboratory(folder, progress)
    experiments = [Experiment(laboratory, seed, steps) for seed in seeds]
    for name in tables:
        table = TABLES[name]
        for variation in table.variations:
            progress(f"{name}: {variation.name}")
            figures = tuple(
                e.measure_edit(variation)
                if isinstance(variation, Edit)
                else e.measure(variation, attacks=table.attacks)
                for e in experiments
            )
            yield Row(name, variation.name, tuple(seeds), figures)


def as_markdown(name: str, rows: Sequence[Row]) -> str:
    """Format a table in Markdown: means, and in brackets the values of the seeds in order."""
    table: Table = TABLES[name]
    lines = [
        f"| {table.question} | {' | '.join(table.columns)} |",
        f"|{'---|' * (len(table.columns) + 1)}",
        *(f"| {row.variation} | {' | '.join(_cell(row.values(column)) for column in table.columns)} |" for row in rows),
    ]
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{_short(statistics.fmean(values))} ({' '.join(map(_short, values))})"


def _short(value: float) -> str:
    """Format with two decimals, below 0.1 with three, and without the zero before the point."""
    text = f"{value:.3f}" if abs(value) < 0.1 else f"{value:.2f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text
