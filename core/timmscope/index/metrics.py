"""What near means: three metrics, and how rows are prepared for each."""

from __future__ import annotations

from typing import Literal

import numpy as np

from timmscope.index.backend import Rows, Space

Metric = Literal["cosine", "l2", "ip"]

SCORE_NAMES: dict[Metric, str] = {
    "cosine": "cosine similarity",
    "l2": "Euclidean distance",
    "ip": "inner product",
}


def space_of(metric: Metric) -> Space:
    """What a backend compares prepared rows by."""
    return "l2" if metric == "l2" else "ip"


def prepared(rows: Rows, metric: Metric) -> Rows:
    """Rows as a backend compares them: scaled to length 1 for cosine, zeros staying zero."""
    if metric != "cosine":
        return rows
    wide = rows.astype(np.float64)
    lengths = np.sqrt(np.square(wide).sum(1, keepdims=True))
    return np.asarray(wide / np.where(lengths > 0, lengths, 1), np.float32)
