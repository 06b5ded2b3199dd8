"""Draws rows of values as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from timmscope.drawing.canvas import Canvas, line_height
from timmscope.drawing.style import (
    INK,
    LABEL_PT,
    MARGIN_IN,
    MUTED,
    SMALL_PT,
    format_number,
    text_width,
    theme,
    truncate,
)

_MAX_ROWS = 40
_MAX_CELL_IN = 3.2
_GAP_IN = 0.25


def table_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw a table whose columns are the keys of the rows; numbers are aligned right.

    Args:
        rows: the rows; a missing key gives an empty cell. The first 40 rows are shown.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    shown = list(rows[:_MAX_ROWS])
    right = [_numeric(shown, column) for column in columns]
    cells = [[cell_text(row.get(column, "")) for column in columns] for row in shown]
    heads = [column.replace("_", " ") for column in columns]
    widths = [
        min(
            _MAX_CELL_IN,
            max(
                [text_width(heads[index], LABEL_PT, bold=True)]
                + [text_width(row[index], LABEL_PT) for row in cells]
            )
            + 0.02,
        )
        for index in range(len(columns))
    ]
    step = line_height(LABEL_PT) + 0.09
    left_out = len(rows) - len(shown)
    if not columns:
        note = "no rows"
    else:
        note = f"{left_out} more row{'s' if left_out > 1 else ''} not shown" if left_out else ""
    total = sum(widths) + _GAP_IN * max(len(columns) - 1, 0)
    with theme():
        page = Canvas(
            max(2 * MARGIN_IN + total, 2.0),
            2 * MARGIN_IN + step * (len(shown) + bool(columns)) + (0.28 if note else 0.0),
        )
        left = MARGIN_IN
        for index, head in enumerate(heads):
            place = left + widths[index] if right[index] else left
            align = "right" if right[index] else "left"
            text = truncate(head, widths[index], bold=True)
            page.text(text, place, MARGIN_IN, align=align, bold=True)
            for row, values in enumerate(cells):
                top = MARGIN_IN + (row + 1) * step + 0.04
                page.text(
                    truncate(values[index], widths[index]), place, top, align=align, colour=INK
                )
            left += widths[index] + _GAP_IN
        for row in range(len(shown) + bool(columns)):
            colour = MUTED if row == 0 else "#e8eaee"
            page.rule(MARGIN_IN, MARGIN_IN + (row + 1) * step - 0.02, total, colour)
        if note:
            page.text(note, MARGIN_IN, page.height - MARGIN_IN - 0.08, size=SMALL_PT, colour=MUTED)
    return page.figure


def _numeric(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    values = [row[column] for row in rows if row.get(column) is not None]
    return bool(values) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )


def cell_text(value: Any) -> str:
    """A value of a row as short text: numbers rounded, lists with commas, `–` for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return format_number(value)
    if isinstance(value, list | tuple):
        return ", ".join(cell_text(item) for item in value)
    return " ".join(str(value).split())
