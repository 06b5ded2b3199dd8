"""Names that a flag takes: repeated, or with commas between."""

from __future__ import annotations

from collections.abc import Sequence


def names(given: Sequence[str]) -> list[str]:
    """All names, in order: `["a,b", "c"]` are three."""
    return [name for text in given for name in text.split(",") if name]
