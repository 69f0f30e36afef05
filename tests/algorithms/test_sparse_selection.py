"""Selections against a naive sort, bit for bit: ties, rules, controls, an unlucky sample, bounded reading."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.algorithms import sparse_selection
from armature.algorithms.selection_rules import RANKINGS, SELECTIONS, select_top
from armature.algorithms.task_vectors import SparseVector
from armature.algorithms.tensor_sources import BLOCK, LiveTensors

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0])
TENSORS = st.dictionaries(
    st.text("abc", min_size=1, max_size=3), st.lists(FLOATS, min_size=1, max_size=30), min_size=1, max_size=5
)


def source(tensors) -> LiveTensors:
    return LiveTensors({name: torch.as_tensor(tensor, dtype=torch.float32) for name, tensor in tensors.items()})


def naive_top(difference: dict[str, np.ndarray], count: int) -> dict[str, list[tuple[int, float]]]:
    """Sort every entry by (-|v|, name, index), take ``count``, drop zeros."""
    entries = [
        (-abs(float(value)), name, index)
        for name, tensor in difference.items()
        for index, value in enumerate(tensor.ravel())
    ]
    kept: dict[str, list[tuple[int, float]]] = {name: [] for name in difference}
    for magnitude, name, index in sorted(entries)[:count]:
        if magnitude:
            kept[name].append((index, float(difference[name].ravel()[index])))
    return {name: sorted(rows) for name, rows in kept.items()}


def as_rows(vector: SparseVector) -> dict[str, list[tuple[int, float]]]:
    return {
        name: list(zip(tensor.indices.tolist(), tensor.values.tolist(), strict=True))
        for name, tensor in vector.tensors.items()
    }


@given(TENSORS, st.floats(0.01, 1))
@settings(deadline=None, max_examples=100)
def test_top_m_equals_the_naive_sort_bit_for_bit(values, density):
    vector = select_top(source(values), density)
    total = sum(map(len, values.values()))
    arrays = {name: np.array(row, dtype=np.float32) for name, row in values.items()}
    assert as_rows(vector) == naive_top(arrays, max(1, round(density * total)))
    assert vector.total == total
    assert vector.kept == sum(len(rows) for rows in as_rows(vector).values())
    dense = np.sqrt(sum(np.square(row.astype(np.float64)).sum() for row in arrays.values()))
    assert vector.dense_norm == pytest.approx(dense, rel=1e-5)


@given(TENSORS, st.floats(0.01, 1))
@settings(deadline=None, max_examples=30)
def test_per_tensor_is_the_naive_sort_of_each_tensor(values, density):
    rows = as_rows(SELECTIONS["per_tensor"](source(values), density, 0))
    for name, row in values.items():
        alone = {name: np.array(row, dtype=np.float32)}
        assert {name: rows[name]} == naive_top(alone, max(1, round(density * len(row))))


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["normal", "few values", "sparse", "skewed"])
@pytest.mark.parametrize("density", [0.001, 0.1, 0.9])
def test_sampling_decides_the_cost_and_never_the_answer(distribution, density, monkeypatch):
    """Blocks of several tensors, a sample of a few hundred entries, and one that misleads."""
    monkeypatch.setattr(sparse_selection, "SAMPLE_BLOCKS", 8)
    monkeypatch.setattr(sparse_selection, "SAMPLE_BLOCK", 256)
    rng = np.random.default_rng(0)
    made = {
        "normal": lambda n: rng.standard_normal(n),
        "few values": lambda n: rng.integers(-2, 3, n),
        "sparse": lambda n: rng.standard_normal(n) * (rng.random(n) < 0.01),
        "skewed": lambda n: np.where(np.arange(n) % (n // 8 + 1) < 256, 100.0, 1.0) * rng.standard_normal(n),
    }[distribution]
    dense = {name: made(size).astype(np.float32) for name, size in {"b": BLOCK + 1000, "a": 5000, "c": 1}.items()}
    vector = select_top(source(dense), density)
    flat = np.concatenate([dense[name] for name in sorted(dense)])
    count = round(density * len(flat))
    order = np.lexsort((np.arange(len(flat)), -np.abs(flat)))[:count]
    expected = np.sort(order[flat[order] != 0])
    starts = {name: sum(len(dense[n]) for n in sorted(dense) if n < name) for name in dense}
    got = np.concatenate([starts[name] + tensor.indices.numpy() for name, tensor in vector.tensors.items()])
    assert np.array_equal(got, expected)
    values = np.concatenate([tensor.values.numpy() for tensor in vector.tensors.values()])
    assert values.tobytes() == flat[expected].tobytes()


def test_an_unlucky_sample_costs_another_pass(monkeypatch):
    """The sampled entries are the largest of all, so the first bound is far too high."""
    monkeypatch.setattr(sparse_selection, "SAMPLE_BLOCKS", 4)
    monkeypatch.setattr(sparse_selection, "SAMPLE_BLOCK", 256)
    dense = torch.ones(8000)
    for start in range(0, 8000, 2000):
        dense[start : start + sparse_selection.SAMPLE_BLOCK] = 5.0

    class Counted(LiveTensors):
        passes = 0

        def read(self, name, start, stop):
            self.passes += stop - start == 8000
            return super().read(name, start, stop)

    counted = Counted({"w": dense})
    assert select_top(counted, 0.5).kept == 4000
    assert counted.passes > 1


def test_ties_go_to_the_first_name_and_index():
    tensors = {"b": torch.ones(4), "a": -torch.ones(2, 2)}
    for mapping in (tensors, dict(reversed(tensors.items()))):
        assert as_rows(select_top(source(mapping), 5 / 8)) == {"a": [(i, -1.0) for i in range(4)], "b": [(0, 1.0)]}


def test_the_ranking_is_global_and_not_per_tensor():
    vector = select_top(source({"big": [5.0, 6.0], "small": [1.0, 2.0]}), 0.5)
    assert as_rows(vector) == {"big": [(0, 5.0), (1, 6.0)], "small": []}
    assert vector.kept == 2
    assert vector.norm == pytest.approx(61**0.5)


def test_a_zero_difference_keeps_nothing():
    assert select_top(source({"w": torch.zeros(10)}), 0.5).kept == 0


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan")])
@pytest.mark.parametrize("rule", sorted(SELECTIONS))
def test_bad_densities_are_refused(rule, density):
    with pytest.raises(ValueError, match="density"):
        SELECTIONS[rule](source({"w": torch.ones(2)}), density, 0)


@pytest.mark.parametrize("rule", sorted(SELECTIONS))
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(rule, bad):
    with pytest.raises(ValueError, match=r"w: .*not finite"):
        SELECTIONS[rule](source({"w": [1.0, bad, 2.0]}), 0.1, 0)


def test_no_tensors_are_refused():
    with pytest.raises(ValueError, match="no entries"):
        select_top(source({}), 0.5)


def test_each_entry_is_read_once():
    class Counted(LiveTensors):
        entries = 0

        def read(self, name, start, stop):
            self.entries += stop - start
            return super().read(name, start, stop)

    counted = Counted({str(i): torch.randn(4) for i in range(5)})
    select_top(counted, 0.5)
    assert counted.entries == 20


@pytest.fixture
def normal() -> LiveTensors:
    generator = torch.Generator().manual_seed(0)
    return LiveTensors({name: torch.randn(50, 20, generator=generator) for name in "ab"})


def supports_and_values(vector: SparseVector):
    tensors = vector.tensors.values()
    return [tensor.indices.tolist() for tensor in tensors], torch.cat([tensor.values for tensor in tensors])


@pytest.mark.parametrize("rule", ["permuted", "random_sign"])
def test_controls_on_the_same_support(rule, normal):
    where, values = supports_and_values(select_top(normal, 0.3))
    control_where, control = supports_and_values(SELECTIONS[rule](normal, 0.3, 7))
    assert control_where == where
    assert not torch.equal(control, values)
    if rule == "permuted":
        assert torch.equal(control.sort().values, values.sort().values)
    else:
        assert torch.equal(control.abs(), values.abs())
        assert 0.4 < (control == values).float().mean() < 0.6


def test_random_keeps_m_true_values_spread_evenly(normal):
    vector = SELECTIONS["random"](normal, 0.3, 7)
    assert vector.kept == 600
    for name, tensor in vector.tensors.items():
        assert torch.equal(normal.read(name, 0, 1000)[tensor.indices], tensor.values)
        assert len(tensor.values) == pytest.approx(300, abs=60)
        assert tensor.indices.float().mean() == pytest.approx(500, abs=60)
    assert SELECTIONS["random"](source({"w": [0.0, 1.0, 0.0, 2.0]}), 1.0, 0).kept == 2


@pytest.mark.parametrize("rule", ["random", "permuted", "random_sign"])
def test_controls_are_functions_of_the_seed(rule, normal):
    rows = [as_rows(SELECTIONS[rule](normal, 0.3, seed)) for seed in (7, 7, 8)]
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.parametrize("rule", sorted(RANKINGS))
def test_one_ranking_serves_every_density_up_to_its_own(rule, normal):
    ranking = RANKINGS[rule](normal, 0.3, None)
    for density in (0.3, 0.001, 0.17):
        assert as_rows(ranking.select(density)) == as_rows(SELECTIONS[rule](normal, density, 0))
    with pytest.raises(ValueError, match="ranked"):
        ranking.select(0.31)
