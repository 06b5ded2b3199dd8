"""Rows in the space in which distances are measured: as they are, or scaled to length 1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from timmscope import ParameterError, Rows

Numbers = npt.NDArray[Any]
Metric = Literal["cosine", "l2"]

_NAMED = 5
_MEDIAN_ROWS = 16
"""Rows whose median approximates that of all."""
_LARGEST = 1e15
"""Sums of squares of larger values may overflow float32."""
_SMALLEST = 1e-12
"""Squares of smaller differences may underflow to zero in float32."""
_ROUNDING, _EXACT_ROUNDING = 1e-6, 1e-12
"""Relative differences that are rounding, in float32 and in float64."""


class RowSpace:
    """Rows of some images, prepared for a metric.

    For `cosine`, rows are scaled to length 1, so that half the squared Euclidean distance is the
    cosine distance, 1 - cos; for `l2` they are unchanged.

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
            what: description for the progress bar.
            origin: subtracted from each row before it becomes float32, such as `middle()`.

        Raises:
            ParameterError: rows hold NaN or infinite values, are all zero (`cosine`) or too long.
        """
        for ids, values in self.rows.batches(what):
            prepared = self.prepared(values)
            shifted = np.subtract(prepared, origin, dtype=np.result_type(prepared, np.float32))
            yield ids, np.ascontiguousarray(shifted, np.float32)

    def middle(self) -> Numbers:
        """Median `(d,)` float64 of some rows, an origin for products in float32.

        Products of rows far from zero lose digits in float32, so the origin is subtracted first. A
        median is used because one distant row would move a mean far away. It is rounded to the type
        of the rows, so that the subtraction is exact in that type.
        """
        sample = self.prepared(self.rows.take(self.rows.sample(_MEDIAN_ROWS, 0)))
        middle = np.median(sample.astype(np.float64), axis=0)
        return np.asarray(middle.astype(np.result_type(sample, np.float32)), np.float64)

    def take(self, ids: npt.ArrayLike) -> Numbers:
        """Prepared rows `(len(ids), d)` float64 of some images, by id."""
        return self.prepared(self.rows.take(ids)).astype(np.float64, copy=False)

    def prepared(self, values: Numbers) -> Numbers:
        """Rows `(b, d)` prepared for the metric; float64 for `cosine`, unchanged for `l2`.

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
                raise self._zero_rows_error()
            wide /= longest
            squares = np.einsum("ij,ij->i", wide, wide)
        wide /= np.sqrt(squares)[:, None]
        return wide

    def distances(self, first: Numbers, second: Numbers) -> Numbers:
        """Distances `(m,)` of prepared rows `(m, d)` to others `(m, d)`, one by one, in float64."""
        gaps = first.astype(np.float64, copy=False) - second
        squares = np.einsum("ij,ij->i", gaps, gaps)
        return np.asarray(squares / 2 if self.metric == "cosine" else np.sqrt(squares))

    def require_spread(self, what: str) -> None:
        """Refuse rows that are all equal; reading stops at the first two that differ.

        Args:
            what: consequence of equal rows, for the message.

        Raises:
            ParameterError: all rows are equal (for `cosine` in direction), or for `l2` so nearly
                that squares of their differences leave float32's range.
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

    def _zero_rows_error(self) -> ParameterError:
        """The error for rows that are all zero, with their number."""
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
