"""Chooses the engine of an index by its size: exact search while that is quick, `ivf` beyond."""

from __future__ import annotations

from timmscope.index.ivf import code_values, list_count

MAX_EXACT_VALUES = 1 << 24
"""Exact search reads every value of every row; this many take a few milliseconds per query."""


def choose_backend(count: int, dim: int, *, recall: float, memory: int | None) -> tuple[str, str]:
    """Return the name of an engine for `count` rows of width `dim`, and the reason.

    `hnsw` is never chosen: its graph takes far longer to build than lists, needs several times
    their memory, and differs from build to build.

    Args:
        count: number of rows.
        dim: width of a row.
        recall: wanted share of the true neighbours.
        memory: bytes that may stay in memory during searches; None for no limit.

    Raises:
        VectorIndexError: the memory is too small for any engine.
    """
    rows = f"{count} rows of {dim}"
    size = 4 * count * dim
    fits = memory is None or size <= memory
    if fits and recall == 1:
        return "flat", f"flat: only exact search has a recall of 1, and {rows} fit in memory"
    if fits and count * dim <= MAX_EXACT_VALUES:
        return "flat", f"flat: {rows} are searched exactly in milliseconds"
    values = code_values(count, dim, memory)
    reason = "too slow to search exactly" if fits else f"more than the {memory} bytes allowed"
    return "ivf", (
        f"ivf: {rows} are {reason}; {list_count(count)} lists, a 4-bit code for every {values} "
        "values"
    )
