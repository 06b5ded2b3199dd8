"""Chooses the colours and shapes of the classes on a map, a scatter plot with a point per image.

The figure and the HTML page of a map both use them, so that they look the same.
"""

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
"""Shapes of points, which frequent classes get in turn; each of them also has its own colour."""
CONTINUOUS = "viridis"
"""Name of the matplotlib colour map for points that are coloured by a number."""
MOST = len(COLOURS)
"""Largest number of classes with a colour of their own."""


@dataclass(frozen=True)
class Group:
    """Points with the same colour and shape: those of one class, of all rare classes, or of none.

    Attributes:
        name: name in the legend.
        colour: `#rrggbb`.
        shape: one of `SHAPES`.
        members: indices of the group's points, ascending.
        named: whether the group is a single class, so that its name may be written on the map.
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
        codes: `(n,)` class of each point, as an index into `classes`; -1 for none.

    Returns:
        The groups that have points: the frequent classes in the order of `classes`, then the rest.
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
