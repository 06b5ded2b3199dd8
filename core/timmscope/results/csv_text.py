"""Writes rows as CSV text, for the documents of a result."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows with the same keys as CSV: a line of names, then a line per row, ended by CR LF.

    None is an empty cell. Invalid bytes of file names that are not UTF-8 become `\\ufffd`.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape").decode("utf-8", "replace")
