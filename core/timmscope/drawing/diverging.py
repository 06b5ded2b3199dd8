"""A colour map for signed values, in which equal steps look equally large on both sides of zero.

matplotlib's own diverging maps are either not perceptually uniform or dark in the middle, where an
overlay should vanish. This map is made of straight lines in Oklab, a colour space in which
distances correspond to perceived differences (Ottosson, "A perceptual color space for image
processing", 2020).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from matplotlib.colors import ListedColormap
from numpy.typing import NDArray

BELOW, MIDDLE, ABOVE = (0.05, 0.25, 0.60), (0.97, 0.97, 0.97), (0.65, 0.08, 0.13)
"""sRGB colours of the lowest value (blue), of zero (almost white) and of the highest (red)."""

# Ottosson's matrices, from linear sRGB to cone responses and from their cube roots to Oklab.
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


@cache
def diverging() -> ListedColormap:
    """Return a map that is blue below zero, almost white at zero and red above.

    It has 257 colours, so that zero has a colour of its own.
    """
    below, middle, above = (oklab(np.array(colour)) for colour in (BELOW, MIDDLE, ABOVE))
    half = np.linspace(0, 1, 129)[:, None]
    line = np.concatenate([below + half * (middle - below), middle + half[1:] * (above - middle)])
    return ListedColormap(srgb(line).clip(0, 1).tolist(), name="timmscope-diverging")


def oklab(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert sRGB `(…, 3)` in [0, 1] to Oklab."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.cbrt(linear @ _TO_CONES.T) @ _TO_LAB.T)


def srgb(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert Oklab `(…, 3)` to sRGB."""
    linear = (lab @ np.linalg.inv(_TO_LAB).T) ** 3 @ np.linalg.inv(_TO_CONES).T
    steep = 1.055 * linear.clip(0.0031308) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, 12.92 * linear, steep)
