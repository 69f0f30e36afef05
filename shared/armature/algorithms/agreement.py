"""Agreement of two judges beyond chance: Cohen's kappa (1960).

::

    kappa = (p_o - p_e) / (1 - p_e)      p_o = share of equal verdicts
                                         p_e = sum over verdicts c of share_1(c) share_2(c)

Two judges that always give one and the same verdict have p_e = 1: nothing is left to agree on beyond chance, and kappa
is None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """``kappa`` of two judges' verdicts on the same items; None for no items, or if chance explains all.

    Raises:
        ValueError: The sequences have different lengths.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} verdicts against {len(second)}")
    count = len(first)
    if not count:
        return None
    observed = sum(one == other for one, other in zip(first, second, strict=True)) / count
    shares, others = Counter(first), Counter(second)
    chance = sum(shares[verdict] * others[verdict] for verdict in shares) / count**2
    return None if chance == 1 else (observed - chance) / (1 - chance)
