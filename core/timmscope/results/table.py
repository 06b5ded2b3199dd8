"""`Table` is the result of a technique that computes a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Table(Result):
    """A table of plain values.

    Attributes:
        rows: dictionaries with the same keys.
    """

    rows: list[dict[str, Any]]

    def figure(self) -> Figure:
        """Draw the rows as a table."""
        from timmscope.drawing import table_figure

        return table_figure(self.rows)

    def summary(self) -> list[dict[str, Any]]:
        """Return the rows, with notes."""
        return self.with_notes(self.rows)
