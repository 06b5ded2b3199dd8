"""Which engine suits how many rows: exact search while it is quick, an approximate one beyond."""

from __future__ import annotations

QUICK_VALUES = 1 << 24
"""Exact search reads every value of every row; so many take a few milliseconds a query."""


def choose_backend(count: int, dim: int, *, recall: float, memory: int | None) -> tuple[str, str]:
    """Name of an engine for `count` rows of width `dim`, and why.

    Args:
        count: number of rows.
        dim: width of a row.
        recall: share of the true neighbours wanted.
        memory: bytes that may stay in memory while it is searched; None for no limit.
    """
    rows = f"{count} rows of {dim}"
    return "flat", f"{rows}"
