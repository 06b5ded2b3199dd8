"""Distinct names for several sources in one figure."""

from __future__ import annotations

from collections.abc import Sequence

from timmscope import Rows


def distinct_names(*candidates: Sequence[str]) -> list[str]:
    """The first list without repeated names; else the last list, with equal names numbered."""
    for names in candidates:
        if len(set(names)) == len(names):
            return list(names)
    last = list(candidates[-1])
    return [
        f"{name} {last[: index + 1].count(name)}" if last.count(name) > 1 else name
        for index, name in enumerate(last)
    ]


def store_names(sources: Sequence[Rows], *preferred: Sequence[str]) -> list[str]:
    """Names of stores (`array` for arrays): preferred ones, else of the folder, else with its
    parent."""
    paths = [None if rows.layer is None else rows.layer.store.path for rows in sources]
    short = ["array" if path is None else path.stem for path in paths]
    long = ["array" if path is None else f"{path.parent.name}/{path.stem}" for path in paths]
    return distinct_names(*preferred, short, long)
