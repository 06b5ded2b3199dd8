"""Defines the three metrics of an index, and how rows are prepared for each."""

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
    """Return how a backend compares rows that are prepared for a metric."""
    return "l2" if metric == "l2" else "ip"


def prepare_rows(rows: Rows, metric: Metric) -> Rows:
    """Return rows as a backend compares them: for cosine, scaled to length 1; zeros stay zero."""
    if metric != "cosine":
        return rows
    wide = rows.astype(np.float64)
    lengths = np.sqrt(np.square(wide).sum(1, keepdims=True))
    return np.asarray(wide / np.where(lengths > 0, lengths, 1), np.float32)
