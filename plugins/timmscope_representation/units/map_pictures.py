"""Maps as images: their range, their colours, and their position on the image."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import torch
from torch import Tensor
from torch.nn import functional

Centres = tuple[float, float, float, float]
"""Row and column in pixels of the first cell's centre, and the steps down and across."""

_BELOW = (0.337, 0.706, 0.914)
"""Colour of the lowest value below zero."""
_COVER = 0.7
"""Opacity of the strongest values over the image."""
_LUMA = (0.299, 0.587, 0.114)


def min_max(maps: Tensor, *, common: bool) -> Tensor:
    """Maps `(B, n, h, w)` scaled to 0 at the lowest and 1 at the highest value; 0 if constant.

    Args:
        maps: the maps.
        common: use the lowest and highest value of all maps of an image, not of each map.
    """
    axes = (1, 2, 3) if common else (2, 3)
    low, high = maps.amin(axes, keepdim=True), maps.amax(axes, keepdim=True)
    span = high - low
    return torch.where(span > 0, (maps - low) / torch.where(span > 0, span, 1), 0.0)


def coloured(values: Tensor, span: tuple[float, float], colours: str) -> Tensor:
    """A map `(h, w)` in colours, `(3, h, w)`.

    Args:
        values: the map.
        span: lowest and highest value of the colours.
        colours: `grey` from black to white, or `heat`: bright above zero, blue below it, black at
            zero; where nothing is below zero, black is the lowest value.
    """
    low, high = span
    if colours == "grey":
        return _scaled(values, low, high)[None].expand(3, -1, -1)
    base = max(low, 0.0)
    rgba = matplotlib.colormaps["inferno"](_scaled(values, base, high).numpy())
    above = torch.from_numpy(rgba[..., :3].transpose(2, 0, 1).copy()).float()
    if low >= 0:
        return above
    depth = (-values / -low).clamp(0, 1)
    below = torch.tensor(_BELOW)[:, None, None] * depth
    return torch.where(values < 0, below, above)


def laid_over(image: Tensor, values: Tensor, span: tuple[float, float], colours: str) -> Tensor:
    """A map `(H, W)` over an image `(3, H, W)`: strong values cover it or, in grey, brighten it."""
    low, high = span
    if colours == "grey":
        return image * (0.1 + 0.9 * _scaled(values, low, high))
    ground = 0.75 * (image * torch.tensor(_LUMA)[:, None, None]).sum(0) + 0.25 * image
    reach = max(abs(high), abs(min(low, 0.0)))
    strength = _COVER * _scaled(values.abs(), max(low, 0.0), reach)
    return (1 - strength) * ground + strength * coloured(values, span, colours)


def placed(values: Tensor, size: tuple[int, int], centres: Sequence[float] | None) -> Tensor:
    """A map `(h, w)` at an image's size, with each value at its cell's centre, linear in between.

    Beyond the outermost centres the nearest value is used. Pixel `i` is at `i + 0.5`.

    Args:
        values: the map.
        size: height and width of the image in pixels.
        centres: as in `Centres`; None stretches the grid over the image.
    """
    rows, columns = values.shape
    if centres is None:
        down, across = size[0] / rows, size[1] / columns
        centres = (down / 2, across / 2, down, across)
    up = _between(size[0], rows, centres[0], centres[2])
    left = _between(size[1], columns, centres[1], centres[3])
    return up @ values @ left.T


def enlarged(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """A small image `(3, h, w)` enlarged to a size without smoothing its cells."""
    return functional.interpolate(picture[None], size, mode="nearest-exact")[0]


def _between(length: int, cells: int, first: float, step: float) -> Tensor:
    """Weights `(length, cells)` of the cells at each pixel."""
    at = ((torch.arange(length) + 0.5 - first) / step).clamp(0, cells - 1)
    lower = at.floor().long().clamp(max=max(cells - 2, 0))
    weights = torch.zeros(length, cells)
    share = at - lower
    weights.scatter_(1, lower[:, None], (1 - share)[:, None])
    if cells > 1:
        weights.scatter_(1, lower[:, None] + 1, share[:, None])
    return weights


def _scaled(values: Tensor, low: float, high: float) -> Tensor:
    if high <= low:
        return torch.zeros_like(values)
    return ((values - low) / (high - low)).clamp(0, 1)
