"""Thumbnails on a map: choice of those that do not overlap, and drawing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from timmscope.drawing import CONTINUOUS, INK, OTHER, Group, number_range, to_array

if TYPE_CHECKING:
    from timmscope_representation.embedding.embedding import Embedding

PANEL_IN = 5.8
"""Side of a map in inches."""
PICTURE_IN = 0.38
"""Side of a thumbnail in inches."""
FRAME = 1.06
"""Side of the frame relative to the extent of the points."""


def spread_out(points: Any, queries: Any) -> Any:
    """Indices of points whose thumbnails do not overlap each other.

    Points are visited from the middle of the map outwards; a point is chosen if its thumbnail does
    not overlap earlier ones.

    Args:
        points: `(n, 2)`.
        queries: `(q, 2)`, whose thumbnails come first.
    """
    everything = np.concatenate([points, queries])
    low, high = everything.min(0), everything.max(0)
    span = max(float((high - low).max()), 1e-12) * FRAME
    middle = (low + high) / 2
    side = span / PANEL_IN * PICTURE_IN * 1.05
    inside = (span - side) / 2  # thumbnails stay inside the frame
    places = np.clip(points, middle - inside, middle + inside)
    free = np.ones(len(points), bool)
    for place in np.clip(queries, middle - inside, middle + inside):
        free &= np.abs(places - place).max(1) >= side
    kept = []
    for position in np.argsort(np.square(places - middle).sum(1), kind="stable").tolist():
        if free[position]:
            kept.append(position)
            free &= np.abs(places - places[position]).max(1) >= side
            if not free.any():
                break
    return np.array(kept, np.int64)


def draw_pictures(
    axes: Axes,
    found: Embedding,
    groups: list[Group],
    colouring: dict[str, Any] | None,
    values: Any,
) -> None:
    """Draw thumbnails at their points, framed in the points' colours, and those of the queries."""
    assert found.shown is not None
    assert found.shown_images is not None
    points = found.points.numpy()
    colours = _colours(len(points), groups, colouring, values)
    half = float(np.ptp(axes.get_xlim())) / PANEL_IN * PICTURE_IN / 2
    for position, image in zip(found.shown.tolist(), found.shown_images, strict=True):
        _picture(axes, to_array(image), points[position], half, colours[position], 1.3)
    if found.query_images is not None:
        placed: list[Any] = []
        for image, place in zip(found.query_images, found.query_points.numpy(), strict=True):
            if all(np.abs(place - other).max() >= 2 * half for other in placed):
                _picture(axes, to_array(image), place, half, INK, 2.6)
                placed.append(place)


def scale_of(values: Any) -> Normalize:
    """Colour scale from the smallest to the largest finite value, which may be equal."""
    low, high = number_range(values)
    return Normalize(low, high if high > low else low + 1)


def _colours(
    count: int, groups: list[Group], colouring: dict[str, Any] | None, values: Any
) -> list[Any]:
    if colouring is not None and colouring["classes"] is None:
        ramp = colormaps[CONTINUOUS].with_extremes(bad=OTHER)
        painted: list[Any] = list(ramp(scale_of(values)(values)))
        return painted
    found: list[Any] = [OTHER] * count
    for group in groups:
        for member in group.members.tolist():
            found[member] = group.colour
    return found


def _picture(axes: Axes, array: Any, place: Any, half: float, colour: Any, edge: float) -> None:
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    x = min(max(float(place[0]), left + half), right - half)
    y = min(max(float(place[1]), bottom + half), top - half)
    extent = (x - half, x + half, y - half, y + half)
    image = AxesImage(axes, interpolation="antialiased", origin="upper", extent=extent, zorder=3)
    image.set_data(array)
    axes.add_image(image)
    corner, side = (x - half, y - half), 2 * half
    axes.add_patch(
        Rectangle(corner, side, side, facecolor="none", edgecolor=colour, linewidth=edge, zorder=4)
    )
