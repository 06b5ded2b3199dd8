"""Colours and shapes that distinguish the classes on a map, the same in the figure and the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from timmscope.drawing.style import SERIES

COLOURS = (*SERIES[:6], "#7b4fa3", "#8c6d31", "#b2182b", "#4d9221", "#35978f")
OTHER = "#a3a9b2"
"""Colour of rare classes and of points without a class."""
SHAPES = ("disc", "square", "triangle", "diamond", "wedge", "plus", "pentagon", "cross")
"""Shapes; with 11 colours no two classes share both, and adjacent classes share neither."""
CONTINUOUS = "viridis"
"""matplotlib's colour map for numbers."""
MOST = len(COLOURS)
"""Largest number of classes with a colour of their own."""


@dataclass(frozen=True)
class Group:
    """Points with the same colour and shape: a class, all rarer classes, or points without one.

    Attributes:
        name: name in the legend.
        colour: `#rrggbb`.
        shape: one of `SHAPES`.
        members: indices of its points, ascending.
        named: whether it is a single class, whose name may be written on the map.
    """

    name: str
    colour: str
    shape: str
    members: npt.NDArray[np.int64]
    named: bool


def group_by_class(classes: Sequence[str], codes: npt.ArrayLike) -> list[Group]:
    """Group points by class: the `MOST` most frequent classes, all others, and points without one.

    Args:
        classes: names of the classes.
        codes: `(n,)` class of each point, as an index; -1 for none.

    Returns:
        Groups with points, the classes in the order of `classes`.
    """
    codes = np.asarray(codes).astype(np.int64)
    counts = Counter(codes[codes >= 0].tolist())
    by_frequency = sorted(counts, key=lambda code: (-counts[code], code))
    frequent = sorted(by_frequency[:MOST])
    groups = [
        Group(
            classes[code],
            COLOURS[index],
            SHAPES[index % len(SHAPES)],
            np.flatnonzero(codes == code),
            True,
        )
        for index, code in enumerate(frequent)
    ]
    rest = np.flatnonzero((codes >= 0) & ~np.isin(codes, frequent))
    if len(rest):
        name = f"{len(by_frequency) - len(frequent)} other classes"
        groups.append(Group(name, OTHER, "disc", rest, False))
    without = np.flatnonzero(codes < 0)
    if len(without):
        groups.append(Group("no class", OTHER, "cross", without, False))
    return groups
