"""Computes bootstrap confidence intervals of means over images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 2000
_VALUES_AT_ONCE = 4_000_000


def interval(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean.

    It is the percentile bootstrap with 2000 resamples (Efron, 1979).

    Args:
        values: `(N,)`, one value per image, without NaN.
        seed: seed of the resampling.

    Returns:
        Lower and upper end; NaN for fewer than two values, whose spread is unknown.
    """
    if len(values) < 2:
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    step = max(1, _VALUES_AT_ONCE // len(values))
    means = [
        values[generator.integers(0, len(values), (min(step, RESAMPLES - done), len(values)))].mean(
            1
        )
        for done in range(0, RESAMPLES, step)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)
