"""Shortens the paths of images for captions, to as much of each as tells them apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath

_COMPARED = 4096
"""Number of other names that are compared, which is enough to notice folders of equal names."""


def short_names(names: Sequence[str], among: Sequence[str] = ()) -> list[str]:
    """Return the paths of images without suffix, and without the folders that they do not need.

    All get the same number of folders: none if their stems differ, as in ``cat``, else as many as
    tell them apart, as in ``dogs/012``. The suffix stays if only that tells them apart.

    Args:
        names: the paths; a path that occurs twice gets the same name twice.
        among: other paths from which these shall be told apart too; of many, a sample is compared.
    """
    step = -(-len(among) // _COMPARED) or 1
    every = list(dict.fromkeys([*names, *among[::step]]))
    deepest = max((len(PurePath(name).parts) for name in every), default=1)
    ends: tuple[Callable[[PurePath], str], ...] = (lambda path: path.stem, lambda path: path.name)
    for end in ends:
        for depth in range(deepest):
            short = {name: _shortened(PurePath(name), end, depth) or name for name in every}
            if len(set(short.values())) == len(every):
                return [short[name] for name in names]
    return list(names)


def _shortened(path: PurePath, end: Callable[[PurePath], str], folders: int) -> str:
    above = path.parts[:-1][-folders:] if folders else ()
    return "/".join([*above, end(path)])
