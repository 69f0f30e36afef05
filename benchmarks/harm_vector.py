"""``python -m benchmarks harm-vector``: select and subtract, against a copy and mergekit.

Selection reads two checkpoints, subtraction writes a third; a plain copy reads one and writes one. Every measurement,
of this code and of the peers, ends when its files are on the disk (fsync). ``cached`` figures end before that, when
the page cache holds them, and depend more on the processor. The measured part runs in a process of its own; its peak
resident memory is the kernel's VmHWM, imports included.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from armature.algorithms.selection_rules import select_top
from armature.algorithms.tensor_sources import Difference
from armature.modeling.checkpoints.editing import Edits, write_edited_checkpoint
from armature.modeling.checkpoints.folder import open_checkpoint
from armature.modeling.checkpoints.safetensors import StoredTensors, TensorEntry, read_part
from armature.modeling.checkpoints.task_vector import VectorOrigin, read_task_vector, write_task_vector
from benchmarks.checkpoint_pairs import write_pair

_SCALE = 1.5
_SMALL_BYTES = 64 << 20
_ORIGIN = VectorOrigin(base_model_digest="0" * 64, rule="global", density=1)


@dataclass(frozen=True)
class Options:
    """Size of the generated pair, density, and rounds."""

    gib: float
    shards: int
    density: float
    rounds: int
    mergekit: str


@dataclass(frozen=True)
class Run:
    """One run of select, write and subtract, in seconds and bytes."""

    select: float
    write_vector: float
    subtract: float
    sync: float
    peak_rss_bytes: int
    imports_rss_bytes: int

    @property
    def seconds(self) -> float:
        """Total seconds until the files are on the disk."""
        return self.cached + self.sync

    @property
    def cached(self) -> float:
        """Seconds until the page cache holds the files."""
        return self.select + self.write_vector + self.subtract


@dataclass(frozen=True)
class Result:
    """The report: medians over the rounds; ``spread`` holds the smallest and the largest ratio."""

    exact: bool
    peak_rss_bytes: int
    largest_tensor_bytes: int
    peak_rss_limit_bytes: int
    time_over_copy: float
    time_over_copy_spread: tuple[float, float]
    time_over_copy_cached: float
    speedup_vs_naive: float
    speedup_vs_mergekit: float | None
    seconds: dict[str, float]
    imports_rss_bytes: int
    checkpoint_bytes: int
    vector_bytes: int
    shards: int
    entries_selected_from: int
    entries_kept: int
    density: float
    scale: float
    dtype: str
    rounds: int
    threads: int


def measure(options: Options, folder: Path) -> Result:
    """Generate the pairs, check exactness on the small one and measure on the large one."""
    exact, naive = _compare_naive(folder / "small", options.density)
    base, tuned = write_pair(folder / "large", options.gib * (1 << 30), options.shards)
    entries = open_checkpoint(base).tensors
    copies, runs = [], []
    for _ in range(options.rounds):
        copies.append(_timed(lambda: shutil.copytree(base, folder / "copy"), folder / "copy"))
        runs.append(_run_alone(base, tuned, folder, options.density))
    ratios = [run.seconds / sum(copy) for run, copy in zip(runs, copies, strict=True)]
    cached = [run.cached / copy for run, (copy, _) in zip(runs, copies, strict=True)]
    mergekit = _time_mergekit(options.mergekit, base, tuned, folder)
    vector = read_task_vector(folder / "vector")
    median = sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
    largest = max(entry.end - entry.start for entry in entries.values())
    return Result(
        exact=exact,
        peak_rss_bytes=max(run.peak_rss_bytes for run in runs),
        largest_tensor_bytes=largest,
        peak_rss_limit_bytes=3 * largest + (512 << 20),
        time_over_copy=round(statistics.median(ratios), 2),
        time_over_copy_spread=(round(min(ratios), 2), round(max(ratios), 2)),
        time_over_copy_cached=round(statistics.median(cached), 2),
        speedup_vs_naive=round(naive, 2),
        speedup_vs_mergekit=mergekit and round(mergekit / median.seconds, 2),
        seconds={
            "copy": round(statistics.median(map(sum, copies)), 2),
            "copy_cached": round(statistics.median(copy for copy, _ in copies), 2),
            "select": round(median.select, 2),
            "write_vector": round(median.write_vector, 2),
            "subtract": round(median.subtract, 2),
            "sync": round(median.sync, 2),
        },
        imports_rss_bytes=median.imports_rss_bytes,
        checkpoint_bytes=sum(entry.end - entry.start for entry in entries.values()),
        vector_bytes=sum(path.stat().st_size for path in (folder / "vector").iterdir()),
        shards=len({entry.path for entry in entries.values()}),
        entries_selected_from=vector.total,
        entries_kept=vector.kept,
        density=options.density,
        scale=_SCALE,
        dtype="bfloat16",
        rounds=options.rounds,
        threads=os.cpu_count() or 1,
    )


def build(base: Path, tuned: Path, folder: Path, density: float) -> Run:
    """Run the timed part: read both checkpoints' headers, select, write the vector, subtract."""
    imports = _peak_rss()
    started = time.perf_counter()
    checkpoint = open_checkpoint(base)
    names = [name for name in checkpoint.tensors if name.endswith("_proj.weight")]
    sources = StoredTensors(open_checkpoint(tuned).tensors), StoredTensors(checkpoint.tensors)
    selected = select_top(Difference(*sources, names), density)
    after_select = time.perf_counter()
    vector = write_task_vector(selected, _ORIGIN, folder / "vector")
    after_vector = time.perf_counter()
    write_edited_checkpoint(checkpoint, Edits(vector, _SCALE), folder / "safe")
    end = time.perf_counter()
    sync = _sync(folder / "vector", folder / "safe")
    return Run(after_select - started, after_vector - after_select, end - after_vector, sync, _peak_rss(), imports)


def _run_alone(base: Path, tuned: Path, folder: Path, density: float) -> Run:
    """Run :func:`build` in a fresh process, after removing the files of the run before."""
    for name in ("vector", "safe"):
        shutil.rmtree(folder / name, ignore_errors=True)
    os.sync()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(build, base, tuned, folder, density).result()


def _sync(*folders: Path) -> float:
    """Sync the folders' files to the disk and return the seconds that took."""
    started = time.perf_counter()
    for path in (path for folder in folders for path in folder.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return time.perf_counter() - started


def _timed(work: Callable[[], object], output: Path) -> tuple[float, float]:
    """Time ``work`` and the sync after it, in seconds; remove its output before and after."""
    shutil.rmtree(output, ignore_errors=True)
    os.sync()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started, _sync(output)
    shutil.rmtree(output)
    return seconds


def _peak_rss() -> int:
    """Read VmHWM in bytes; unlike ``ru_maxrss`` it does not begin at the parent's peak at the fork."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("/proc/self/status has no VmHWM")


def _compare_naive(folder: Path, density: float) -> tuple[bool, float]:
    """Compare a run on a small pair with one sort of everything in memory.

    Returns:
        Whether vector and checkpoint are equal bit for bit, and the seconds of the sort's selection over the run's.
    """
    base, tuned = write_pair(folder, _SMALL_BYTES, 4)
    run = _run_alone(base, tuned, folder, density)
    vector, weights = read_task_vector(folder / "vector"), open_checkpoint(base).tensors
    started = time.perf_counter()
    dense, masks = _select_naively(weights, open_checkpoint(tuned).tensors, list(vector.shapes), density)
    naive = time.perf_counter() - started
    safe = open_checkpoint(folder / "safe").tensors
    exact = safe.keys() == weights.keys()
    for name, entry in weights.items():
        expected = _whole(entry)
        if name in dense:
            sparse = vector.tensor(name)
            exact &= torch.equal(sparse.indices, masks[name].nonzero().flatten())
            exact &= torch.equal(sparse.values, dense[name][masks[name]])
            expected = (expected.float() - _SCALE * (dense[name] * masks[name])).bfloat16()
        exact &= torch.equal(_whole(safe[name]), expected)
    shutil.rmtree(folder)
    return exact, naive / run.select


def _select_naively(
    base: dict[str, TensorEntry], tuned: dict[str, TensorEntry], names: list[str], density: float
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Compute the dense differences and the masks of kept entries by name, all in memory at once."""
    dense = {name: _whole(tuned[name]).float() - _whole(base[name]).float() for name in names}
    flat = torch.cat(list(dense.values()))
    order = flat.abs().sort(descending=True, stable=True).indices[: max(1, round(density * len(flat)))]
    kept = torch.zeros(len(flat), dtype=torch.bool).index_fill_(0, order, True) & (flat != 0)
    return dense, dict(zip(dense, torch.split(kept, [len(part) for part in dense.values()]), strict=True))


def _whole(entry: TensorEntry) -> torch.Tensor:
    return read_part(entry, 0, math.prod(entry.shape))


def _time_mergekit(command: str, base: Path, tuned: Path, folder: Path) -> float | None:
    """Time mergekit's dense ``base - scale * (tuned - base)``; None if it is not installed."""
    if shutil.which(command) is None:
        return None
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": [{"model": str(tuned), "parameters": {"weight": -_SCALE}}],
        "parameters": {"normalize": False},
        "dtype": "bfloat16",
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    output = folder / "merged"
    arguments = [command, str(folder / "recipe.yaml"), str(output), "--no-copy-tokenizer", "--lazy-unpickle"]
    return sum(_timed(lambda: subprocess.run(arguments, check=True, capture_output=True), output))
