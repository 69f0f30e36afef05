"""Differences in float32, the capability guard, and reading in bounded parts."""

import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.algorithms.tensor_sources import (
    Difference,
    LiveTensors,
    WithoutComponent,
    blocks,
    map_in_order,
    squares,
)


def whole(source, name):
    return source.read(name, 0, int(np.prod(source.shapes[name]))).clone()


@pytest.mark.trap(6)
def test_the_difference_of_bfloat16_weights_is_taken_in_float32():
    base = torch.tensor([1.0, 256.0]).bfloat16()
    tuned = torch.tensor([1.0 + 2**-7, 255.0]).bfloat16()
    difference = Difference(LiveTensors({"w": tuned}), LiveTensors({"w": base}))
    assert whole(difference, "w").tolist() == [2**-7, -1.0]


def test_differences_that_make_no_sense_are_refused():
    ones = LiveTensors({"w": torch.ones(2)})
    with pytest.raises(ValueError, match=r"w: .*differ"):
        Difference(LiveTensors({"w": torch.ones(3)}), ones)
    with pytest.raises(ValueError, match=r"w: .*differ"):
        whole(Difference(LiveTensors({"w": torch.ones(2, dtype=torch.int32)}), ones), "w")
    with pytest.raises(ValueError, match=r"v: .*differ"):
        Difference(LiveTensors({"v": torch.ones(2)}), ones)
    with pytest.raises(KeyError):
        Difference(ones, ones, ["missing"])


@given(st.integers(0, 2**32), st.floats(-3, 3))
@settings(deadline=None, max_examples=50)
def test_the_guard_is_orthogonal_to_the_benign_difference(seed, share):
    rng = np.random.default_rng(seed)
    harm, benign = rng.standard_normal((2, 40))
    mixed = {"a": (harm + share * benign)[:30].astype(np.float32), "b": (harm + share * benign)[30:].astype(np.float32)}
    along = {"a": benign[:30].astype(np.float32), "b": benign[30:].astype(np.float32)}
    guarded = WithoutComponent(*(LiveTensors({n: torch.from_numpy(x) for n, x in t.items()}) for t in (mixed, along)))
    v, v_b = (np.concatenate([t["a"], t["b"]]).astype(np.float64) for t in (mixed, along))
    expected = v - (v @ v_b) / (v_b @ v_b) * v_b
    got = np.concatenate([whole(guarded, name).numpy() for name in "ab"])
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert abs(got @ v_b) < 1e-4 * (1 + np.linalg.norm(v) * np.linalg.norm(v_b))


def test_the_guard_leaves_a_planted_harm_direction():
    """Harm on the first entries, benign on the last, mixed 1 : 3. Without the guard the benign part would win."""
    harm, benign = torch.zeros(100), torch.zeros(100)
    harm[:10], benign[90:] = 1.0, 1.0
    guarded = WithoutComponent(LiveTensors({"w": harm + 3 * benign}), LiveTensors({"w": benign}))
    assert guarded.coefficient == 3.0
    assert torch.equal(whole(guarded, "w"), harm)


def test_a_benign_difference_of_zero_changes_nothing():
    v = torch.randn(5)
    assert torch.equal(whole(WithoutComponent(LiveTensors({"w": v}), LiveTensors({"w": torch.zeros(5)})), "w"), v)


def test_blocks_tile_every_tensor_in_order():
    assert list(blocks({"b": (2, 3), "a": (), "c": (0,)}, size=4)) == [("a", 0, 1), ("b", 0, 4), ("b", 4, 6)]


def test_threads_keep_the_order_and_stay_only_a_few_keys_ahead():
    started: list[int] = []
    lock = threading.Lock()

    def slow_first(key: int) -> int:
        with lock:
            started.append(key)
        time.sleep(0.01 if key == 0 else 0)
        return -key

    results = map_in_order(slow_first, range(100))
    assert next(results) == (0, 0)
    assert len(started) < 20
    assert [key for key, _ in results] == list(range(1, 100))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_squares_neither_overflow_nor_vanish(scale):
    values = torch.full((1000,), scale)
    assert squares(values) == pytest.approx(1000 * float(np.float32(scale)) ** 2, rel=1e-5)
