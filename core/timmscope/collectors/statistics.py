"""Statistics of every unit over a data set, computed in one pass and mergeable.

Counts, extremes and the quantile sketch merge exactly in any order. Mean and variance follow Chan,
Golub and LeVeque (1979) in float64. Their last bits depend on the order of merging, so a store
always merges its shards in the order of ids, which makes the result reproducible bit for bit.
"""

from __future__ import annotations

import numpy as np

from .base import Collector, LayerBatch, State, check_rows, check_state
from .sketch import Sketch

KINDS = ("pooled", "max")


class Statistics(Collector):
    """Count, mean, variance, extremes, share of zeros and quantiles of pooled values and maxima.

    NaN and infinite values are counted as ``nonfinite`` and otherwise left out.

    State: for each kind of row (``pooled``, ``max``) arrays of shape (C,): ``count``, ``zeros``,
    ``nonfinite`` (int64), ``mean``, ``m2`` (sum of squared deviations; float64), ``min``, ``max``
    (float32; infinite before the first value), and the arrays of the `Sketch`.
    """

    name = "statistics"
    needs = KINDS

    def __init__(self) -> None:
        self._moments: dict[str, Moments] = {kind: Moments() for kind in KINDS}

    def update(self, batch: LayerBatch) -> None:
        """Add rows ``pooled`` and ``max``, (n, C)."""
        check_rows(self, batch)
        for kind, moments in self._moments.items():
            moments.merge(Moments.of(batch.rows[kind]))

    def merge(self, other: Statistics) -> None:
        """Add the statistics of another collector."""
        for kind, moments in self._moments.items():
            moments.merge(other._moments[kind])

    def state(self) -> State:
        """Return all arrays under names ``kind.name``."""
        return {
            f"{kind}.{name}": value
            for kind, moments in self._moments.items()
            for name, value in moments.arrays().items()
        }

    def load(self, state: State) -> None:
        """Replace all statistics."""
        for kind in KINDS:
            prefix = f"{kind}."
            arrays = {
                key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)
            }
            self._moments[kind] = Moments.load(arrays)

    def of(self, kind: str) -> Moments:
        """Return the statistics of one kind of row, ``pooled`` or ``max``."""
        return self._moments[kind]


class Moments:
    """Statistics of one kind of row; the arrays have one value per unit, as in `Statistics`."""

    def __init__(self, units: int = 0) -> None:
        self.count = np.zeros(units, dtype=np.int64)
        self.zeros = np.zeros(units, dtype=np.int64)
        self.nonfinite = np.zeros(units, dtype=np.int64)
        self.mean = np.zeros(units, dtype=np.float64)
        self.m2 = np.zeros(units, dtype=np.float64)
        self.min = np.full(units, np.inf, dtype=np.float32)
        self.max = np.full(units, -np.inf, dtype=np.float32)
        self.sketch = Sketch(units)

    @classmethod
    def of(cls, rows: np.ndarray) -> Moments:
        """Compute the statistics of rows (n, C)."""
        moments = cls(rows.shape[1])
        if not len(rows):
            return moments
        dtype = np.result_type(
            rows.dtype, np.float32
        )  # keeps float64, which a user's rows may have
        values = np.ascontiguousarray(rows.T, dtype=dtype)  # (C, n)
        finite = np.isfinite(values)
        moments.count = finite.sum(axis=1)
        moments.nonfinite = values.shape[1] - moments.count
        moments.zeros = (values == 0).sum(axis=1)
        moments.min = np.where(finite, values, dtype.type(np.inf)).min(axis=1)
        moments.max = np.where(finite, values, dtype.type(-np.inf)).max(axis=1)
        exact = np.where(finite, values, 0).astype(np.float64)
        moments.mean = exact.sum(axis=1) / np.maximum(moments.count, 1)
        exact -= moments.mean[:, None]
        moments.m2 = np.where(finite, exact * exact, 0).sum(axis=1)
        with np.errstate(over="ignore"):
            moments.sketch.update(values.astype(np.float32, copy=False))
        return moments

    def merge(self, other: Moments) -> None:
        """Add the statistics of other rows."""
        if not len(self.count):
            self.__dict__.update(Moments(len(other.count)).__dict__)
        if not len(other.count):
            return
        total = self.count + other.count
        share = other.count / np.maximum(total, 1)
        delta = other.mean - self.mean
        self.mean = np.where(self.count == 0, other.mean, self.mean + delta * share)
        self.m2 = self.m2 + other.m2 + delta * delta * self.count * share
        self.count = total
        self.zeros = self.zeros + other.zeros
        self.nonfinite = self.nonfinite + other.nonfinite
        self.min = np.minimum(self.min, other.min)
        self.max = np.maximum(self.max, other.max)
        self.sketch.merge(other.sketch)

    def arrays(self) -> State:
        """Return the state as named arrays."""
        own = {name: value for name, value in vars(self).items() if name != "sketch"}
        return own | {f"sketch.{name}": value for name, value in vars(self.sketch).items()}

    @classmethod
    def load(cls, arrays: State) -> Moments:
        """Create statistics from a saved state.

        Raises:
            ValueError: the arrays do not fit each other.
        """
        moments = cls()
        check_state(arrays, moments.arrays())
        units = len(arrays["count"])
        for name in moments.arrays():
            if name.startswith("sketch."):
                continue
            if len(arrays[name]) != units:
                raise ValueError(f"{name} has {len(arrays[name])} values for {units} units")
            setattr(moments, name, arrays[name])
        moments.sketch = Sketch.load(
            units, *(arrays[f"sketch.{name}"] for name in ("offsets", "bins", "counts"))
        )
        return moments
