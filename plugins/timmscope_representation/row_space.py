"""Rows in the space that distances are measured in: as they are, or scaled to length 1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from timmscope import ParameterError, Rows

Numbers = npt.NDArray[Any]
Metric = Literal["cosine", "l2"]

_NAMED = 5
_MIDDLE = 16
"""Rows whose median is taken for the middle of all."""
_LARGEST = 1e15
"""Squares of larger values add up to what float32 cannot hold."""
_SMALLEST = 1e-12
"""Squares of differences that are all smaller are, or are near, what float32 takes for zero."""
_ROUNDING, _EXACT_ROUNDING = 1e-6, 1e-12
"""Differences beside the values' size that are rounding, in float32 and in float64."""


class RowSpace:
    """Rows of some images, prepared for a metric.

    For `cosine`, rows have length 1, so that half of a squared Euclidean distance is a cosine
    distance, 1 - cos; for `l2` they are as they are.

    Args:
        rows: the rows.
        metric: `cosine` or `l2`.
    """

    def __init__(self, rows: Rows, metric: Metric) -> None:
        self.rows = rows
        self.metric: Metric = metric

    def batches(
        self, what: str, origin: Numbers | float = 0.0
    ) -> Iterator[tuple[Numbers, Numbers]]:
        """Yield ids `(b,)` and prepared rows `(b, d)` float32, in order, reporting progress.

        Args:
            what: is being done, for the progress bar.
            origin: what is subtracted from each row before it becomes float32, as of `middle`.

        Raises:
            ParameterError: rows hold NaN or infinite values, have no direction or are too long.
        """
        for ids, values in self.rows.batches(what):
            prepared = self.prepared(values)
            near = np.subtract(prepared, origin, dtype=np.result_type(prepared, np.float32))
            yield ids, np.ascontiguousarray(near, np.float32)

    def middle(self) -> Numbers:
        """Median `(d,)` float64 of some rows, an origin for products in float32.

        It is rounded as the rows are, so that it may be subtracted from them in their own type.

        These lose digits far from zero, and a mean would be there if one row is far away.
        """
        some = self.prepared(self.rows.take(self.rows.sample(_MIDDLE, 0)))
        middle = np.median(some.astype(np.float64), axis=0)
        return np.asarray(middle.astype(np.result_type(some, np.float32)), np.float64)

    def take(self, ids: npt.ArrayLike) -> Numbers:
        """Prepared rows `(len(ids), d)` float64 of some images, by id."""
        return self.prepared(self.rows.take(ids)).astype(np.float64, copy=False)

    def prepared(self, values: Numbers) -> Numbers:
        """Rows `(b, d)` as the metric compares them; float64 for `cosine`, as given for `l2`.

        Raises:
            ParameterError: rows are all zero and the metric is `cosine`, or too long for `l2`.
        """
        if self.metric == "l2":
            largest = max(float(values.max()), -float(values.min())) if values.size else 0.0
            if largest > _LARGEST:
                raise ParameterError(
                    f"{self.rows.title} holds values up to {largest:.2g}, whose squares leave "
                    "float32's range: scale them down",
                    parameter="source",
                )
            return values
        wide = values.astype(np.float64)
        squares = np.einsum("ij,ij->i", wide, wide)
        if len(wide) and not (squares.min() > 1e-200 and squares.max() < 1e200):
            longest = np.abs(wide).max(1, keepdims=True)
            if not longest.all():
                raise self._directionless()
            wide /= longest
            squares = np.einsum("ij,ij->i", wide, wide)
        wide /= np.sqrt(squares)[:, None]
        return wide

    def distances(self, first: Numbers, second: Numbers) -> Numbers:
        """Distance `(m,)` of each prepared row `(m, d)` to its counterpart, in float64."""
        gaps = first.astype(np.float64, copy=False) - second
        squares = np.einsum("ij,ij->i", gaps, gaps)
        return np.asarray(squares / 2 if self.metric == "cosine" else np.sqrt(squares))

    def require_spread(self, what: str) -> None:
        """Refuse rows that are all equal; reads no more than it takes to find two that differ.

        Raises:
            ParameterError: they are equal, for `cosine` in direction, or so nearly for `l2` that
                squares of their differences leave float32's range.
        """
        first: Numbers | None = None
        largest = 0.0
        for _, values in self.rows.batches("reading rows"):
            prepared = self.prepared(values)
            exact = self.metric == "l2" and prepared.dtype == np.float64
            prepared = prepared.astype(np.float64, copy=False)
            first = prepared[0] if first is None else first
            gap = float(np.abs(prepared - first).max())
            if gap > (_EXACT_ROUNDING if exact else _ROUNDING) * np.abs(first).max():
                largest = max(largest, gap)
            if largest > _SMALLEST:
                return
        if largest:
            raise ParameterError(
                f"no values of {self.rows.title} differ by more than {largest:.2g}, whose square "
                "leaves float32's range: scale them up",
                parameter="source",
            )
        raise ParameterError(
            f"all {len(self.rows)} rows of {self.rows.title} are equal: {what}",
            parameter="source",
        )

    def _directionless(self) -> ParameterError:
        """The refusal of rows that are all zero, after all of them were counted."""
        found: list[int] = []
        for ids, values in self.rows.batches("reading rows"):
            found += ids[~np.asarray(values).any(1)].tolist()
        first = ", ".join(self.rows.names(found[:_NAMED]))
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        return ParameterError(
            f"{len(found)} of {len(self.rows)} rows of {self.rows.title} are all zero and have no "
            f"direction: {first}{more}; leave them out with where=, or use metric='l2'",
            parameter="metric",
        )
