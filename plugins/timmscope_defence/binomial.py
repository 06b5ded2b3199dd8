"""Exact confidence bounds of a probability, from how often something happened in a sample."""

from __future__ import annotations

import math

import torch

_HALVINGS = 64
"""Bisections of [0, 1], after which float64 cannot separate the ends."""


def lower_bound(hits: int, trials: int, alpha: float) -> float:
    """Return the Clopper–Pearson lower bound of a probability, one-sided, at confidence 1 − alpha.

    It is the p at which `hits` or more of `trials` have the probability alpha, which is the
    quantile alpha of Beta(hits, trials − hits + 1).

    Args:
        hits: how often it happened, from 0 to `trials`.
        trials: number of independent trials, 1 or more.
        alpha: probability that the bound is above the true value, between 0 and 1.
    """
    if hits == 0:
        return 0.0
    if hits == trials:
        return math.exp(math.log(alpha) / trials)
    counts = torch.arange(hits, trials + 1, dtype=torch.float64)
    total = torch.tensor(float(trials), dtype=torch.float64)
    choices = (total + 1).lgamma() - (counts + 1).lgamma() - (total - counts + 1).lgamma()
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        p = (low + high) / 2
        if not low < p < high:
            break
        terms = choices + counts * math.log(p) + (total - counts) * math.log1p(-p)
        low, high = (p, high) if float(terms.logsumexp(0)) < math.log(alpha) else (low, p)
    return low


def needed_hits(trials: int, alpha: float) -> int:
    """Return the least number of hits whose `lower_bound` is 1/2 or more; above `trials` if none.

    At p = 1/2 the number of hits is symmetric, so its upper tail is added up from the top.
    """
    counts = torch.arange(trials, -1, -1, dtype=torch.float64)
    total = torch.tensor(float(trials), dtype=torch.float64)
    choices = (total + 1).lgamma() - (counts + 1).lgamma() - (total - counts + 1).lgamma()
    tails = (choices - trials * math.log(2)).logcumsumexp(0)  # of trials, trials − 1, … hits
    return trials + 1 - int((tails <= math.log(alpha)).sum())
