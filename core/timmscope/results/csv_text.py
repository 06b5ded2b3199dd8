"""Writes rows as CSV text, for the documents of a result."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

_FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows with the same keys as CSV: a line of names, then a line per row, ended by CR LF.

    None is an empty cell. Invalid bytes of file names that are not UTF-8 become `\\ufffd`.
    Text that a spreadsheet would run as a formula, because it begins with ``=``, ``+``, ``-``,
    ``@`` or a control character, gets an apostrophe in front; numbers stay numbers.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    names = list(rows[0]) if rows else []
    writer.writerow(map(_inert, names))
    writer.writerows([_inert(row[name]) for name in names] for row in rows)
    return text.getvalue().encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _inert(cell: Any) -> Any:
    """Put an apostrophe before text that a spreadsheet would take for a formula."""
    if not isinstance(cell, str) or not cell.startswith(_FORMULA_STARTS):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
