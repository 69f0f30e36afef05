"""Task vectors: the exact global top-m against a naive sort, its ties, the control, and subtraction."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.algorithms.task_vectors import (
    SELECTIONS,
    Difference,
    SparseVector,
    permute_values,
    select_top,
    subtract_task_vector,
)
from tests.support.tiny_models import tiny_llama

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0])


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


@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=3), st.lists(FLOATS, min_size=1, max_size=30), min_size=1, max_size=5
    ),
    st.floats(0.01, 1),
)
@settings(deadline=None, max_examples=200)
def test_top_m_equals_the_naive_sort_bit_for_bit(values, density):
    tensors = {name: torch.tensor(row, dtype=torch.float32) for name, row in values.items()}
    vector = select_top(tensors, density)
    total = sum(map(len, values.values()))
    expected = naive_top({name: t.numpy() for name, t in tensors.items()}, max(1, round(density * total)))
    assert as_rows(vector) == expected
    assert vector.total == total
    assert vector.dense_norm == pytest.approx(
        np.sqrt(sum(np.square(t.double().numpy()).sum() for t in tensors.values()))
    )


def test_ties_go_to_the_first_name_and_index_whatever_the_mapping_order():
    tensors = {"b": torch.ones(4), "a": -torch.ones(2, 2)}
    for mapping in (tensors, dict(reversed(tensors.items()))):
        assert as_rows(select_top(mapping, 5 / 8)) == {"a": [(i, -1.0) for i in range(4)], "b": [(0, 1.0)]}


def test_the_ranking_is_global_and_not_per_tensor():
    vector = select_top({"big": torch.tensor([5.0, 6.0]), "small": torch.tensor([1.0, 2.0])}, 0.5)
    assert as_rows(vector) == {"big": [(0, 5.0), (1, 6.0)], "small": []}
    assert vector.kept == 2
    assert vector.norm == pytest.approx(61**0.5)


def test_a_zero_difference_keeps_nothing():
    assert select_top({"w": torch.zeros(10)}, 0.5).kept == 0


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan")])
def test_bad_densities_are_refused(density):
    with pytest.raises(ValueError, match="density"):
        select_top({"w": torch.ones(2)}, density)


def test_t6_the_difference_of_bfloat16_weights_is_taken_in_float32():
    base = torch.tensor([1.0, 256.0]).bfloat16()
    tuned = torch.tensor([1.0 + 2**-7, 255.0]).bfloat16()
    assert Difference({"w": tuned}, {"w": base}, ["w"])["w"].tolist() == [2**-7, -1.0]
    # 256 - 0.75 is 255.25, which bfloat16 rounds to 255; a bfloat16 product of scale and value would round twice
    parameters = {"w": base.clone()}
    subtract_task_vector(parameters, select_top({"w": torch.tensor([0.0, 0.75])}, 0.5), 1.0)
    assert parameters["w"].tolist() == [1.0, torch.tensor(255.25).bfloat16().item()]


def test_differences_that_make_no_sense_are_refused():
    ones = {"w": torch.ones(2)}
    for tuned, message in (
        (torch.ones(3), "differ"),
        (torch.ones(2, dtype=torch.int32), "differ"),
        (torch.tensor([1.0, float("inf")]), "finite"),
    ):
        with pytest.raises(ValueError, match=f"w: .*{message}"):
            Difference({"w": tuned}, ones, ["w"])["w"]
    with pytest.raises(KeyError):
        Difference({}, ones, ["w"])["w"]


def test_permuted_control_keeps_support_values_and_seed():
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(50, generator=generator) for name in "ab"}
    vector = select_top(tensors, 0.3)
    control = permute_values(vector, torch.Generator().manual_seed(7))
    again = SELECTIONS["permuted"](vector, torch.Generator().manual_seed(7))
    assert as_rows(control) == as_rows(again) != as_rows(vector)
    for name in "ab":
        assert torch.equal(control.tensors[name].indices, vector.tensors[name].indices)
    before, after = (torch.cat([t.values for t in v.tensors.values()]).sort().values for v in (vector, control))
    assert torch.equal(before, after)
    assert SELECTIONS["global"](vector, generator) is vector


def test_subtraction_removes_the_fine_tuning_and_scale_zero_keeps_every_bit():
    base, tuned = tiny_llama(0), tiny_llama(1)
    names = [name for name, p in base.named_parameters() if p.dim() == 2]
    vector = select_top(Difference(tuned.state_dict(), base.state_dict(), names), 1.0)
    before = {name: p.clone() for name, p in tuned.named_parameters()}
    subtract_task_vector(dict(tuned.named_parameters()), vector, 0.0)
    assert all(torch.equal(before[name], p) for name, p in tuned.named_parameters())
    subtract_task_vector(dict(tuned.named_parameters()), vector, 1.0)
    for name, parameter in tuned.named_parameters():
        torch.testing.assert_close(parameter, base.state_dict()[name], atol=1e-6, rtol=0)


def test_t5_tied_embeddings_are_edited_once():
    model = tiny_llama()
    name = "model.embed_tokens.weight"
    before = model.get_input_embeddings().weight.detach().clone()
    subtract_task_vector(dict(model.named_parameters()), select_top({name: torch.ones_like(before)}, 1.0), 0.5)
    assert torch.equal(model.lm_head.weight, before - 0.5)
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("scale", [-0.1, float("nan")])
def test_negative_scales_are_refused(scale):
    with pytest.raises(ValueError, match="scale must be >= 0"):
        subtract_task_vector({"w": torch.ones(2)}, select_top({"w": torch.ones(2)}, 1.0), scale)


def test_a_vector_that_does_not_fit_changes_nothing():
    parameters = {"a": torch.ones(2), "b": torch.ones(3)}
    for names in ("ab", "ac"):
        vector = select_top({name: torch.ones(2) for name in names}, 1.0)
        with pytest.raises(ValueError, match="no counterpart"):
            subtract_task_vector(parameters, vector, 1.0)
    assert all((tensor == 1).all() for tensor in parameters.values())


def test_each_tensor_is_read_three_times_and_never_held():
    class Lazy(dict):
        reads = 0

        def __getitem__(self, name):
            self.reads += 1
            return super().__getitem__(name)

    lazy = Lazy({str(i): torch.randn(4) for i in range(5)})
    select_top(lazy, 0.5)
    assert lazy.reads == 3 * 5


def test_no_tensors_are_refused():
    with pytest.raises(ValueError, match="no entries"):
        select_top({}, 0.5)
