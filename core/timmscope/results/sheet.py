"""`Sheet` is the result of a technique that shows many small pictures in a grid."""

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
"""Largest number of pictures per page; the others are on further pages."""


@dataclass(frozen=True, kw_only=True)
class Sheet(Result):
    """Many small pictures in a grid.

    Attributes:
        images: `(n, 3, h, w)` in [0, 1].
        titles: one label per picture.
        rows: facts about each picture, as dictionaries with the same keys.
        title: title of the sheet.
        note: small text below the sheet.
        columns: pictures per row; None makes the grid nearly square.
        row_labels: label at the left of each row; None for no labels.
        row_lengths: number of pictures of each row; None if all rows are full.
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
        """Draw the first page: whole rows of up to `MAX_SHOWN` pictures with their labels."""
        return self._page(0)

    def pictures(self) -> dict[str, Any]:
        """Return the pages after the first."""
        pages = range(1, len(self._pages()))
        return {f"page-{number + 1:03d}": partial(self._page, number) for number in pages}

    def _pages(self) -> list[tuple[slice, slice]]:
        """Return the pictures and the rows of every page."""
        lengths = self.row_lengths
        if lengths is None:
            count = len(self.images)
            columns = self.columns or MAX_SHOWN
            lengths = [min(columns, count - start) for start in range(0, count, columns)]
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
        """Return one row per picture, with notes."""
        return self.with_notes(self.rows)
