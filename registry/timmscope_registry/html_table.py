"""Writes small HTML tables for notebooks, in which every text is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

SHOWN = 20
"""Number of rows that are shown."""


def html_table(caption: str, rows: Iterable[Mapping[str, Any]], count: int) -> str:
    """Return a caption and the first `SHOWN` rows as a table.

    Args:
        caption: a line above the table.
        rows: the rows, each with the same columns; only those that are shown are read.
        count: number of all rows; the caption says how many are left out.
    """
    shown = list(islice(rows, SHOWN))
    if count > len(shown):
        caption += f"; the first {len(shown)} of {count} rows"
    parts = [f"<p>{html.escape(caption)}</p>"]
    if shown:
        columns = list(dict.fromkeys(name for row in shown for name in row))
        parts.append("<table><thead>" + _line("th", columns) + "</thead><tbody>")
        parts += [_line("td", [_text(row.get(name)) for name in columns]) for row in shown]
        parts.append("</tbody></table>")
    return "".join(parts)


def _line(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _text(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:59] + "…"
