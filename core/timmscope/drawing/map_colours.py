"""Chooses the colours of points on a map, a scatter plot with a point per image.

The figure and the HTML page of a map both use them, so that they look the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from timmscope.drawing.style import SERIES, format_number

COLOURS = (*SERIES[:6], "#7b4fa3", "#8c6d31", "#b2182b", "#4d9221", "#35978f")
OTHER = "#a3a9b2"
"""Colour of rare classes and of points without a class."""
SHAPES = ("disc", "square", "triangle", "diamond", "wedge", "plus", "pentagon", "cross")
"""Shapes of points, which frequent classes get in turn; each of them also has its own colour."""
CONTINUOUS = "viridis"
"""Name of the matplotlib colour map for points that are coloured by a number."""
_LONG = 1e12
"""Numbers of more digits before the point are written with an exponent."""
_DIGITS = 17
"""More decimals tell no two floating-point numbers apart."""
MOST = len(COLOURS)
"""Largest number of classes with a colour of their own."""


@dataclass(frozen=True)
class Group:
    """Points in one legend entry: those of a class, of all rare classes, or without a value.

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


def number_range(values: npt.ArrayLike) -> tuple[float, float]:
    """Return the smallest and the largest finite number, the ends of a scale of colours."""
    numbers = np.asarray(values, dtype=np.float64)
    finite = numbers[np.isfinite(numbers)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)


def range_texts(low: float, high: float) -> tuple[str, str, str]:
    """Format the ends and the middle of a scale, with as many digits as tell them apart."""
    values = (low, low / 2 + high / 2, high)
    kind = "f" if max(abs(low), abs(high)) < _LONG else "e"
    texts = [format_number(value) for value in values]
    for digits in range(_DIGITS):
        if low == high or len(set(texts)) == len(texts):
            break
        texts = [f"{value:.{digits}{kind}}" for value in values]
    return texts[0], texts[1], texts[2]


def group_by_number(values: npt.ArrayLike) -> list[Group]:
    """Group points by whether they have a number: all that have one, and those with NaN.

    Args:
        values: `(n,)` number of each point, NaN for none.

    Returns:
        The groups that have points; the colours of the first are those of the numbers.
    """
    missing = np.isnan(np.asarray(values, dtype=np.float64))
    groups = [
        Group("images", SERIES[0], "disc", np.flatnonzero(~missing), False),
        Group("no value", OTHER, "cross", np.flatnonzero(missing), False),
    ]
    return [group for group in groups if len(group.members)]


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
