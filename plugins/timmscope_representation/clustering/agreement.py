"""How well groups agree with labels: purity, normalised mutual information, adjusted Rand index."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]


def contingency(groups: Numbers, labels: Numbers, shape: tuple[int, int]) -> Numbers:
    """How many members of each group have each label `(groups, labels)`, without codes below 0.

    Args:
        groups: `(n,)` codes from 0.
        labels: `(n,)` codes from 0.
        shape: number of groups and of labels.
    """
    known = (groups >= 0) & (labels >= 0)
    cells = groups[known].astype(np.int64) * shape[1] + labels[known]
    return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)


def purity(counts: Numbers) -> float:
    """Share of all members that have the most frequent label of their group."""
    return float(counts.max(1).sum() / counts.sum())


def mutual_information(counts: Numbers) -> float:
    """Mutual information over the mean of both entropies, 0 to 1 (Strehl & Ghosh, JMLR 2002).

    The arithmetic mean, as scikit-learn's default; 1 where there is one group and one label, 0
    where there is one of either alone.
    """
    shares = counts / counts.sum()
    rows, columns = shares.sum(1), shares.sum(0)
    some = shares > 0
    outer = np.outer(rows, columns)
    shared = float((shares[some] * np.log(shares[some] / outer[some])).sum())
    mean = (_entropy(rows) + _entropy(columns)) / 2
    return 1.0 if mean <= 0 else max(0.0, shared / mean)


def adjusted_rand(counts: Numbers) -> float:
    """Rand index adjusted for chance (Hubert & Arabie, J. Classification 1985, equation 5).

    1 for equal partitions, near 0 for independent ones.
    """
    both, rows, columns = (_pairs(part) for part in (counts, counts.sum(1), counts.sum(0)))
    expected = rows * columns / max(_pairs(counts.sum()), 1.0)
    highest = (rows + columns) / 2
    return 1.0 if highest == expected else float((both - expected) / (highest - expected))


def _entropy(shares: Numbers) -> float:
    some = shares[shares > 0]
    return float(-(some * np.log(some)).sum())


def _pairs(counts: Any) -> float:
    """Pairs of members within the same cell."""
    counts = np.asarray(counts, np.float64)
    return float((counts * (counts - 1) / 2).sum())
