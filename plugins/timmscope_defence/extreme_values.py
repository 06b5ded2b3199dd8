"""The largest value that a quantity can have, from the largest values of some samples."""

from __future__ import annotations

import torch
from torch import Tensor

_ENDS = 200
"""Number of ends that are tried, up to ten times the range beyond the largest value."""
_HALVINGS = 60


def largest_possible(maxima: Tensor) -> float:
    """Return the end of a reverse Weibull distribution that fits maxima of samples best.

    `P(max ≤ x) = exp(−((a − x) / s)^c)` for x below the end a: the limit of the distribution of a
    maximum whose values have an end. a, s and the shape c ≥ 1 have the largest likelihood; below a
    shape of 1 the likelihood has no maximum.

    Args:
        maxima: `(n,)` largest values of n samples.
    """
    values = maxima.double().flatten()
    top, spread = values.max(), values.max() - values.min()
    if len(values) < 3 or float(spread) <= 1e-9 * float(top.abs()):
        return float(top)
    ends = top + spread * torch.logspace(-3, 1, _ENDS, dtype=torch.float64).to(values)
    below = (ends[:, None] - values) / spread  # (_ENDS, n)
    shape = _shape(below)
    scale = (below ** shape[:, None]).mean(1) ** (1 / shape)
    likelihood = (
        shape.log() - shape * scale.log() + (shape - 1) * below.log().mean(1)
        - ((below / scale[:, None]) ** shape[:, None]).mean(1)
    )  # fmt: skip
    return float(ends[likelihood.argmax()])


def _shape(values: Tensor) -> Tensor:
    """Return the shape of the likeliest Weibull distribution of each row, between 1 and 1,000.

    It solves `Σ y^c ln y / Σ y^c − 1/c = mean of ln y`, whose left side rises with c.
    """
    logarithms = values.log()
    mean = logarithms.mean(1)
    low, high = torch.ones_like(mean), torch.full_like(mean, 1000.0)
    for _ in range(_HALVINGS):
        shape = (low + high) / 2
        weights = (shape[:, None] * logarithms).softmax(1)
        short = (weights * logarithms).sum(1) - 1 / shape < mean
        low, high = torch.where(short, shape, low), torch.where(short, high, shape)
    return high
