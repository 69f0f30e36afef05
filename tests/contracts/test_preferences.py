"""Preferences: only the ratios of the weights matter, however large or small they are."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armature.contracts.preferences import preference_vector
from armature.errors import InvalidRequest

TINIEST = 5e-324
weights = st.floats(min_value=0, max_value=sys.float_info.max)


@pytest.mark.parametrize("weight", [TINIEST, 1e-9, 1.0, 1e308, sys.float_info.max])
def test_ratios_count_at_every_magnitude(weight: float) -> None:
    assert preference_vector({"wit": weight, "calm": weight}, ["calm", "wit"]) == [0.5, 0.5]
    assert preference_vector({"wit": weight}, ["calm", "wit"]) == [0.0, 1.0]


@given(st.dictionaries(st.sampled_from("abcde"), weights).filter(lambda given: any(given.values())))
def test_a_preference_with_a_positive_weight_is_on_the_simplex(given: dict[str, float]) -> None:
    vector = preference_vector(given, "abcde")
    assert all(0 <= share <= 1 for share in vector)
    assert sum(vector) == pytest.approx(1)


@pytest.mark.bad_input(5)
@pytest.mark.parametrize("given", [{}, {"wit": 0.0}])
def test_no_positive_weight_is_no_preference(given: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        preference_vector(given, ["wit"])
    assert caught.value.error_code == "zero_preference"
