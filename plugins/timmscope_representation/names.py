"""What to call several sources in one picture, so that no two have the same name."""

from __future__ import annotations

from collections.abc import Sequence

from timmscope import Rows


def told_apart(*candidates: Sequence[str]) -> list[str]:
    """The first list of names without repetition; else the last, with equal names numbered."""
    for names in candidates:
        if len(set(names)) == len(names):
            return list(names)
    last = list(candidates[-1])
    return [
        f"{name} {last[: place + 1].count(name)}" if last.count(name) > 1 else name
        for place, name in enumerate(last)
    ]


def store_names(sources: Sequence[Rows], *preferred: Sequence[str]) -> list[str]:
    """Names of stores (`array` for arrays): preferred ones, the folder's, with its parent's."""
    paths = [None if rows.layer is None else rows.layer.store.path for rows in sources]
    short = ["array" if path is None else path.stem for path in paths]
    long = ["array" if path is None else f"{path.parent.name}/{path.stem}" for path in paths]
    return told_apart(*preferred, short, long)
