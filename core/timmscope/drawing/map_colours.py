"""How points of a map are told apart: colour and shape a class, the same in picture and page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from timmscope.drawing.style import SERIES

COLOURS = (*SERIES[:6], "#7b4fa3", "#8c6d31", "#b2182b", "#4d9221", "#35978f")
OTHER = "#a3a9b2"
SHAPES = ("disc", "square", "triangle", "diamond", "wedge", "plus", "pentagon", "cross")
"""With 11 colours, no two classes share both, and neighbours in the list share neither."""
CONTINUOUS = "viridis"
MOST = len(COLOURS)


@dataclass(frozen=True)
class Group:
    """Points that look the same.

    Attributes:
        name: of the class; of all rarer ones together; of those without a class.
        colour: `#rrggbb`.
        shape: one of `SHAPES`.
        members: positions of its points, rising.
        named: whether it is one class, which may be written on the map.
    """

    name: str
    colour: str
    shape: str
    members: npt.NDArray[np.int64]
    named: bool


def groups_of(classes: Sequence[str], codes: npt.ArrayLike) -> list[Group]:
    """The most frequent classes, in their order, then the rest as one, then those without.

    Args:
        classes: names.
        codes: `(n,)` numbers of classes, -1 for none.
    """
    codes = np.asarray(codes).astype(np.int64)
    counts = Counter(codes[codes >= 0].tolist())
    often = sorted(counts, key=lambda code: (-counts[code], code))
    kept = sorted(often[:MOST] if len(often) > MOST else often)
    found = [
        Group(
            classes[code],
            COLOURS[place],
            SHAPES[place % len(SHAPES)],
            np.flatnonzero(codes == code),
            True,
        )
        for place, code in enumerate(kept)
    ]
    rest = np.flatnonzero((codes >= 0) & ~np.isin(codes, kept))
    if len(rest):
        name = f"{len(often) - len(kept)} other classes"
        found.append(Group(name, OTHER, "disc", rest, False))
    without = np.flatnonzero(codes < 0)
    if len(without):
        found.append(Group("no class", OTHER, "cross", without, False))
    return found
