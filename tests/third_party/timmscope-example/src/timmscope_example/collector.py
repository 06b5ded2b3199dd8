"""Firsts."""

import numpy as np

from timmscope import Collector, LayerBatch

NONE = np.iinfo(np.int64).max


class FirstAbove(Collector):
    """Id of the first image whose spatial maximum is above a threshold, by unit.

    Args:
        threshold: what a value has to exceed.
    """

    name = "first-above"
    settings = ("threshold",)
    needs = ("max",)

    def __init__(self, threshold: float = 0.0) -> None:
        self.threshold = threshold
        self.first = np.empty(0, np.int64)

    def update(self, batch: LayerBatch) -> None:
        """Look at some images."""
        above = batch.rows["max"] > self.threshold
        self._take(np.where(above, batch.ids[:, None], NONE).min(0))

    def merge(self, other: "FirstAbove") -> None:
        """Of two firsts the earlier."""
        self._take(other.first)

    def state(self) -> dict[str, np.ndarray]:
        """`first`, `(units,)` int64; the largest int64 where there is none."""
        return {"first": self.first.copy()}

    def load(self, state: dict[str, np.ndarray]) -> None:
        """Replace what was seen."""
        self.first = np.asarray(state["first"], np.int64)

    def _take(self, first: np.ndarray) -> None:
        if not len(self.first):
            self.first = first.copy()
        elif len(first):
            self.first = np.minimum(self.first, first)
