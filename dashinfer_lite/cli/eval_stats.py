"""Statistics of a paired comparison: the same items, answered in two ways."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

Z95: Final = 1.959963984540054  # the normal distribution's quantile for 95 % between both sides


@dataclass(frozen=True, slots=True)
class Paired:
    """How one run compares with another on the same items.

    gained, lost    items that only this run, and only the other one, has right
    difference      of the shares of right answers, this minus the other
    low, high       its 95 % interval
    p               of the exact McNemar test: how likely a split as uneven as gained to lost is, were both equally good
    """

    items: int
    gained: int
    lost: int
    difference: float
    low: float
    high: float
    p: float


def compare(other: Sequence[bool], this: Sequence[bool]) -> Paired:
    """Compare item by item.

    The interval is the adjusted Wald interval for paired proportions, which adds one item to each kind of disagreement
    and so stays honest where few items differ, or none: Bonett and Price, "Adjusted Wald confidence interval for a
    difference of binomial proportions based on paired data", Journal of Educational and Behavioral Statistics 37, 2012.
    """
    gained = sum(mine and not yours for yours, mine in zip(other, this, strict=True))
    lost = sum(yours and not mine for yours, mine in zip(other, this, strict=True))
    items = len(this)
    if not items:
        raise ValueError("there is nothing to compare")
    share_gained, share_lost = (gained + 1) / (items + 2), (lost + 1) / (items + 2)
    middle = share_gained - share_lost
    half = Z95 * math.sqrt((share_gained + share_lost - middle**2) / (items + 2))
    low, high = max(middle - half, -1.0), min(middle + half, 1.0)
    return Paired(items, gained, lost, (gained - lost) / items, low, high, mcnemar(gained, lost))


def mcnemar(gained: int, lost: int) -> float:
    """The two-sided p-value of McNemar's test by the exact binomial distribution; 1 where nothing differs."""
    count = gained + lost
    tail = sum(math.comb(count, k) for k in range(min(gained, lost) + 1))
    return min(1.0, float(2 * tail / 2**count))


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """A mean and the half width of its 95 % interval by the normal approximation; NaN for the latter of one value."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, Z95 * math.sqrt(variance / count)
