"""Agreement of clusters with labels: purity, mutual information and Rand index."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from timmscope_representation.optional_packages import require_package

Numbers = npt.NDArray[Any]


def contingency(groups: Numbers, labels: Numbers, shape: tuple[int, int]) -> Numbers:
    """Number of members of each group with each label `(groups, labels)`; negative codes are left
    out.

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


def label_agreement(groups: Numbers, labels: Numbers) -> tuple[float, float]:
    """Normalised mutual information and adjusted Rand index, by scikit-learn.

    Mutual information is divided by the arithmetic mean of both entropies, as is scikit-learn's
    default (Strehl & Ghosh, JMLR 2002). The Rand index is adjusted for chance (Hubert & Arabie,
    Journal of Classification 1985): 1 for equal partitions, near 0 for independent ones.

    Args:
        groups: `(n,)` codes from 0.
        labels: `(n,)` codes from 0; negative ones are left out.

    Raises:
        PluginError: scikit-learn is not installed.
    """
    what = "agreement with labels (mutual information, Rand index)"
    require_package("sklearn", "scikit-learn", what)
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    known = labels >= 0
    pair = labels[known], groups[known]
    return float(normalized_mutual_info_score(*pair)), float(adjusted_rand_score(*pair))
