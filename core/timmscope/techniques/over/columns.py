"""Facts about the images of a run as columns, and what they say over all images.

A share has Wilson's interval, which is right for shares near 0 and 1 as well. The interval of a
mean is a bootstrap; that of a median lies between two of the sorted values, whatever their
distribution (Conover, Practical Nonparametric Statistics, 1999, section 3.2).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from timmscope.results.bootstrap import interval

_Z = 1.959963984540054
"""Quantile of the normal distribution for a two-sided interval of 95 %."""
_LARGE = 5000
"""From this number of values on, the mean is normal enough to need no bootstrap."""
_MOST_TEXTS = 1000
"""Distinct texts of a column that are counted."""


@dataclass
class Columns:
    """The facts of N images: numbers and shares as arrays, texts as counts.

    Args:
        count: number of images.
    """

    count: int
    values: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    shares: set[str] = field(default_factory=set)
    texts: dict[str, Counter[str]] = field(default_factory=dict)
    names: dict[str, None] = field(default_factory=dict)

    @classmethod
    def of(cls, count: int, facts: Iterable[tuple[int, dict[str, Any]]]) -> Columns:
        """Collect facts.

        Args:
            count: number of images.
            facts: number of an image and its facts.
        """
        columns = cls(count)
        for number, own in facts:
            for name, value in own.items():
                columns._add(name, number, value)
        for name in columns.texts:
            columns.values.pop(name, None)
        return columns

    def _add(self, name: str, number: int, value: Any) -> None:
        self.names.setdefault(name)
        if value is None:
            return
        if isinstance(value, str):
            counts = self.texts.setdefault(name, Counter())
            if value in counts or len(counts) < _MOST_TEXTS:
                counts[value] += 1
            return
        if isinstance(value, bool):
            self.shares.add(name)
        if name not in self.values:
            self.values[name] = np.full(self.count, np.nan)
        self.values[name][number] = value


def share_interval(hits: int, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share (1927); NaN for no image."""
    if not count:
        return math.nan, math.nan
    share, z2 = hits / count, _Z * _Z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    low = 0.0 if hits == 0 else middle - half
    return low, 1.0 if hits == count else middle + half


def mean_interval(values: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """Return the 95 % interval of a mean of finite values; NaN for fewer than two."""
    if len(values) < _LARGE:
        return interval(values, seed)
    half = _Z * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - half, float(values.mean()) + half


def median_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of a median; NaN for fewer than six values.

    Args:
        values: `(N,)`, which may be infinite.
    """
    count = len(values)
    # The largest number of values below the lower end that chance exceeds in 97.5 % of all samples.
    left_out, chance = 0, 0.5**count if count < 1000 else 0.0
    if count >= 1000:
        left_out = math.floor(count / 2 - _Z * math.sqrt(count) / 2)
    else:
        total, ways = chance, 1
        while total <= 0.025:
            left_out += 1
            ways = ways * (count - left_out + 1) // left_out
            total += ways * chance
    if not left_out:
        return math.nan, math.nan
    ordered = np.sort(values)
    return float(ordered[left_out - 1]), float(ordered[count - left_out])
