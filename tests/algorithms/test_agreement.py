"""Cohen's kappa on tables with known values."""

from __future__ import annotations

import pytest

from armature.algorithms.agreement import cohen_kappa


def test_a_table_of_two_raters() -> None:
    """20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: p_o = .7, p_e = .5 * .6 + .5 * .4 = .5."""
    first = "y" * 25 + "n" * 25
    second = "y" * 20 + "n" * 5 + "y" * 10 + "n" * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)


def test_bounds() -> None:
    assert cohen_kappa([0, 1, None], [0, 1, None]) == 1.0
    assert cohen_kappa([0, 1], [1, 0]) == -1.0
    assert cohen_kappa([0, 1, 0, 1], [0, 0, 1, 1]) == 0.0


def test_nothing_beyond_chance_is_left_to_measure() -> None:
    assert cohen_kappa([], []) is None
    assert cohen_kappa([1, 1], [1, 1]) is None
    with pytest.raises(ValueError, match="2 verdicts against 1"):
        cohen_kappa([1, 1], [1])
