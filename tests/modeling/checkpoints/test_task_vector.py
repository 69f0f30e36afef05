"""Task vectors on disk: the same bytes for the same vector, every entry back, and damage refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from armature.algorithms.selection_rules import SELECTIONS, select_top
from armature.algorithms.task_vectors import HeldVector, SparseTensor, SparseVector
from armature.algorithms.tensor_sources import BLOCK, LiveTensors
from armature.errors import InvalidSafetensors
from armature.modeling.checkpoints.task_vector import (
    DESCRIPTION,
    TENSORS,
    VectorOrigin,
    decode_gaps,
    encode_gaps,
    read_task_vector,
    write_task_vector,
)

ORIGIN = VectorOrigin(base_model_digest="0" * 64, data={"harmful_pairs": "1" * 64}, rule="global", density=0.1)
NAME = "layers.0.up_proj.weight"


@pytest.fixture(scope="module")
def vector() -> SparseVector:
    generator = torch.Generator().manual_seed(0)
    return select_top(LiveTensors({n: torch.randn(40, 30, generator=generator) for n in (NAME, "b", "a")}), 0.1)


def oracle_codes(positions: list[int]) -> list[int]:
    """Written from the format's page, entry by entry."""
    codes, after = [], 0
    for position in positions:
        gap = position - after
        while gap >= 255:
            codes.append(255)
            gap -= 255
        codes.append(gap)
        after = position + 1
    return codes


@given(st.sets(st.integers(0, 3000)) | st.sets(st.sampled_from([0, 254, 255, 256, 510, 511, 765, BLOCK - 1])))
@settings(deadline=None, max_examples=200)
def test_gaps_are_coded_as_the_page_says_and_decode_to_the_same(positions: set[int]) -> None:
    ordered = torch.tensor(sorted(positions), dtype=torch.int64)
    codes = encode_gaps(ordered)
    assert codes.tolist() == oracle_codes(sorted(positions))
    assert torch.equal(decode_gaps(codes), ordered)


@given(st.lists(st.sampled_from([0, 1, 254, 255]), max_size=40))
@settings(deadline=None, max_examples=100)
def test_any_bytes_decode_to_ascending_positions(codes: list[int]) -> None:
    positions = decode_gaps(torch.tensor(codes, dtype=torch.uint8))
    assert bool((positions.diff() > 0).all())
    assert len(positions) == sum(code != 255 for code in codes)


def same(left: SparseVector, right: SparseVector) -> bool:
    return left.shapes == right.shapes and all(
        torch.equal(a.indices, b.indices) and torch.equal(a.values, b.values)
        for a, b in zip(left.tensors.values(), right.tensors.values(), strict=True)
    )


def test_vectors_survive_the_disk_and_give_the_same_bytes(vector: SparseVector, tmp_path: Path) -> None:
    written = write_task_vector(vector, ORIGIN, tmp_path / "a")
    write_task_vector(read_task_vector(tmp_path / "a"), ORIGIN, tmp_path / "b")
    again = read_task_vector(tmp_path / "a")
    assert same(again, vector)
    assert same(written, vector)
    assert again.origin == ORIGIN
    for found in (again, written):
        assert (found.total, found.kept, found.dense_norm) == (vector.total, vector.kept, vector.dense_norm)
        assert found.norm == pytest.approx(vector.norm)
    for file in (TENSORS, DESCRIPTION):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("rule", sorted(SELECTIONS))
def test_every_rule_survives_the_disk_across_blocks(rule: str, tmp_path: Path) -> None:
    dense = {"a": torch.randn(BLOCK + 70_000, generator=torch.Generator().manual_seed(1)), "b": torch.ones(3, 2)}
    made = SELECTIONS[rule](LiveTensors(dense), 0.02, 5)
    write_task_vector(made, ORIGIN, tmp_path / "v")
    assert same(read_task_vector(tmp_path / "v"), made)


def test_the_layout_is_the_one_on_the_page(tmp_path: Path) -> None:
    """Read with the stock library; a tenth of the entries costs about five bytes each."""
    dense = {"a": torch.randn(2 * BLOCK, generator=torch.Generator().manual_seed(1)), "b": torch.zeros(3)}
    made = select_top(LiveTensors(dense), 0.1)
    write_task_vector(made, ORIGIN, tmp_path / "v")
    stored = load_file(tmp_path / "v" / TENSORS)
    assert {name: tensor.dtype for name, tensor in stored.items()} == {
        f"{name}.{part}": dtype
        for name in "ab"
        for part, dtype in (("values", torch.float32), ("counts", torch.int32), ("gaps", torch.uint8))
    }
    assert stored["b.counts"].tolist() == [[0, 0]]
    counts, start, indices = stored["a.counts"], 0, []
    for block, (codes, _) in enumerate(counts.tolist()):
        where, position = [], block * BLOCK - 1
        for code in stored["a.gaps"][start : start + codes].tolist():
            position += 255 if code == 255 else code + 1
            where += [] if code == 255 else [position]
        indices += where
        start += codes
    assert np.array_equal(indices, made.tensor("a").indices)
    assert torch.equal(stored["a.values"], made.tensor("a").values)
    assert (tmp_path / "v" / TENSORS).stat().st_size < 5.01 * made.kept + 1000


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS)


def change_gaps(folder: Path, change: Callable[[list[int]], list[int]]) -> None:
    """Change the gap codes and count them anew, so that only the codes themselves are wrong."""

    def apply(tensors: dict[str, torch.Tensor]) -> None:
        codes = change(tensors[NAME + ".gaps"].tolist())
        tensors[NAME + ".gaps"] = torch.tensor(codes, dtype=torch.uint8)
        tensors[NAME + ".counts"][0, 0] = len(codes)

    change_tensors(folder, apply)


def change_description(folder: Path, **changes: Any) -> None:
    path = folder / DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def replace(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return lambda folder: change_tensors(folder, lambda t: t.update({NAME + part: change(t[NAME + part])}))


BREAKS: dict[str, Callable[[Path], object]] = {
    "beyond the tensor": lambda f: change_gaps(f, lambda codes: [*codes[:-1], 254]),
    "far beyond the tensor": lambda f: change_gaps(f, lambda codes: [255] * 500 + codes),
    "skips at the end": lambda f: change_gaps(f, lambda codes: [*codes, 255]),
    "fewer positions than values": lambda f: change_gaps(f, lambda codes: codes[:-1]),
    "more positions than values": lambda f: change_gaps(f, lambda codes: [0, *codes]),
    "negative count": replace(".counts", lambda t: t - 10**6),
    "overflowing count": replace(".counts", lambda t: torch.full_like(t, 2**31 - 1)),
    "a block too many": replace(".counts", lambda t: torch.cat([t, torch.zeros_like(t)])),
    "counts of another width": replace(".counts", lambda t: t.view(-1)),
    "gaps of another type": replace(".gaps", lambda t: t.int()),
    "gaps of two dimensions": replace(".gaps", lambda t: t[None]),
    "NaN": replace(".values", lambda t: t.fill_(float("nan"))),
    "lengths differ": replace(".values", lambda t: t[:-1].clone()),
    "half precision": replace(".values", lambda t: t.half()),
    "other values": replace(".values", lambda t: t * 1.1),
    "tensor missing": lambda f: change_tensors(f, lambda t: t.pop(NAME + ".values")),
    "another tensor": lambda f: change_tensors(f, lambda t: t.update(extra=torch.ones(1))),
    "no tensors": lambda f: (f / TENSORS).write_bytes(b""),
    "no description": lambda f: (f / DESCRIPTION).unlink(),
    "description is a list": lambda f: (f / DESCRIPTION).write_text("[]"),
    "unknown field": lambda f: change_description(f, extra=1),
    "another version": lambda f: change_description(f, schema_version=1),
    "another shape": lambda f: change_description(f, shapes={NAME: [1], "a": [40, 30], "b": [40, 30]}),
    "a huge shape": lambda f: change_description(f, shapes={NAME: [2**62, 2**62], "a": [40, 30], "b": [40, 30]}),
    "a negative shape": lambda f: change_description(f, shapes={NAME: [-40, -30], "a": [40, 30], "b": [40, 30]}),
    "another total": lambda f: change_description(f, kept=1),
    "another norm": lambda f: change_description(f, norm=1.0),
    "NaN norm": lambda f: (f / DESCRIPTION).write_text(
        (f / DESCRIPTION).read_text().replace('"norm":', '"norm":NaN,"x":')
    ),
}


@pytest.mark.parametrize("case", sorted(BREAKS))
def test_damaged_vectors_are_refused(case: str, vector: SparseVector, tmp_path: Path) -> None:
    write_task_vector(vector, ORIGIN, tmp_path / "vector")
    BREAKS[case](tmp_path / "vector")
    with pytest.raises(InvalidSafetensors):
        read_task_vector(tmp_path / "vector")


def test_a_tensor_without_entries_is_kept(tmp_path: Path) -> None:
    empty = SparseTensor(torch.zeros(0, dtype=torch.long), torch.zeros(0), (2, 3))
    full = SparseTensor(torch.tensor([0, 5]), torch.tensor([1.0, -1.0]), (2, 3))
    write_task_vector(HeldVector({"a": empty, "b": full}, 1.5), ORIGIN, tmp_path / "vector")
    again = read_task_vector(tmp_path / "vector")
    assert (again.kept, again.total) == (2, 12)
    assert again.tensor("a").shape == (2, 3)
