"""`Sheet` is the result of a technique whose outcome is many small pictures in a grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from .result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

MAX_SHOWN = 256
"""Pictures on a page of a sheet; the others are on further pages."""


@dataclass(frozen=True, kw_only=True)
class Sheet(Result):
    """Many small pictures in a grid, for analyses whose outcome is looked at.

    Attributes:
        images: `(n, 3, h, w)` in [0, 1].
        titles: a label each.
        rows: facts about each, dictionaries with the same keys.
        title: of the whole sheet.
        note: small print below it.
        columns: pictures per row, or None for nearly a square.
        row_labels: a label at the left of each row, or None.
        row_lengths: pictures of each row, where rows are not all full; None where they are.
    """

    images: Tensor
    titles: list[str]
    rows: list[dict[str, Any]]
    title: str = ""
    note: str = ""
    columns: int | None = None
    row_labels: list[str] | None = None
    row_lengths: list[int] | None = None

    def figure(self) -> Figure:
        """The pictures in a grid with their labels: the first page, `MAX_SHOWN` in whole rows."""
        return self._page(0)

    def pictures(self) -> dict[str, Any]:
        """The other pages."""
        pages = range(1, len(self._pages()))
        return {f"page-{number + 1:03d}": partial(self._page, number) for number in pages}

    def _pages(self) -> list[tuple[slice, slice]]:
        """Of every page its pictures and its rows."""
        lengths, columns = self.row_lengths, self.columns
        if lengths is None:
            count = len(self.images)
            wide = columns or MAX_SHOWN
            lengths = [min(wide, count - start) for start in range(0, count, wide)]
        step = max(1, MAX_SHOWN // max(lengths, default=1))
        ends = [0, *accumulate(lengths)]
        starts = range(0, len(lengths), step)
        stops = [min(start + step, len(lengths)) for start in starts]
        return [
            (slice(ends[start], ends[stop]), slice(start, stop))
            for start, stop in zip(starts, stops, strict=True)
        ]

    def _page(self, number: int) -> Figure:
        from timmscope.drawing import sheet_figure

        pages = self._pages()
        shown, rows = pages[number] if pages else (slice(0), slice(0))
        parts = [self.note] if self.note else []
        if len(pages) > 1:
            first, last = shown.start + 1, shown.stop
            parts.append(f"page {number + 1} of {len(pages)}: {first}–{last} of {len(self.images)}")
        return sheet_figure(
            self.images[shown],
            self.titles[shown],
            columns=self.columns,
            title=self.title,
            row_labels=self.row_labels[rows] if self.row_labels is not None else None,
            row_lengths=self.row_lengths[rows] if self.row_lengths is not None else None,
            note="; ".join(parts),
        )

    def summary(self) -> list[dict[str, Any]]:
        """One row per picture."""
        return self.rows
