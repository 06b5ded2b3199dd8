"""Colours heat maps, lays them over images, and draws their colour bars.

A signed map has a diverging colour map centred at zero. The colours of an unsigned map start at
zero, or at its smallest value if that is far from zero, as in RISE. A few extreme pixels, as in
saliency maps, would leave the rest black. So the colours end at a quantile of the non-zero
magnitudes, and an arrow on the colour bar says so. The values themselves are not changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from torch import Tensor
from torch.nn import functional

from timmscope.drawing.canvas import Canvas
from timmscope.drawing.diverging import diverging
from timmscope.drawing.pixels import as_picture
from timmscope.drawing.style import (
    SEQUENTIAL,
    SMALL_PT,
)

BY_COLOUR = "by colour, grey is 0"
"""Label above a picture that `around_grey` made."""
QUANTILE = 0.995
"""Share of the non-zero magnitudes that lie within the range of the colours."""


@dataclass(frozen=True)
class HeatScale:
    """The range of values that a heat map's colours show.

    Attributes:
        low: value of the first colour.
        high: value of the last colour; above `low`, even for a constant map.
        signed: whether zero is in the middle of the range.
        clipped: whether some values are outside the range.
    """

    low: float
    high: float
    signed: bool
    clipped: bool

    @classmethod
    def of(cls, heat: Tensor, *, signed: bool | None = None) -> HeatScale:
        """Choose the range for a map `(H, W)` and ignore NaN and infinite values.

        Args:
            heat: the map.
            signed: whether zero is in the middle; by default, whether any value is below zero.
        """
        values = heat.detach().double().flatten()
        values = values[torch.isfinite(values)]
        top = float(values.abs().max()) if len(values) else 0.0
        if top == 0:
            return cls(-1.0 if signed else 0.0, 1.0, signed=bool(signed), clipped=False)
        low = float(values.min())
        nonzero = values.abs()[values != 0].numpy()  # a unit's map may be zero almost everywhere
        edge = float(np.quantile(nonzero, QUANTILE))
        # A quantile far below the maximum means a few isolated cells: use the whole range.
        edge = edge if edge > top / 20 else top
        signed = low < -1e-6 * top if signed is None else signed
        beyond = top > edge * 1.001
        if signed:
            return cls(-edge, edge, signed=True, clipped=beyond)
        if top / 4 < low < edge:  # masks and attention give every position a value
            return cls(low, edge, signed=False, clipped=beyond)
        return cls(0.0, edge, signed=False, clipped=beyond)

    @property
    def colours(self) -> Colormap:
        """Colour map: perceptually uniform for unsigned values, diverging for signed ones."""
        return diverging() if self.signed else matplotlib.colormaps[SEQUENTIAL]

    def unit(self, heat: Tensor) -> Tensor:
        """Return the values as positions on the colour map, in [0, 1]."""
        scaled = (heat.detach().float() - self.low) / (self.high - self.low)
        return scaled.nan_to_num(0.0, 1.0, 0.0).clamp(0, 1)

    def strength(self, heat: Tensor) -> Tensor:
        """Return the magnitudes in [0, 1]: 0 is invisible in an overlay, 1 is the last colour."""
        position = self.unit(heat)
        return (position * 2 - 1).abs() if self.signed else position


def colourise(heat: Tensor, scale: HeatScale | None = None) -> Tensor:
    """Colour a map `(H, W)` as an image `(3, H, W)` in [0, 1], by default over its own range."""
    scale = scale or HeatScale.of(heat)
    rgba = scale.colours(scale.unit(heat).cpu().numpy())
    return torch.from_numpy(np.ascontiguousarray(rgba[..., :3].transpose(2, 0, 1))).float()


def around_grey(change: Tensor) -> Tensor:
    """Show signed values `(3, H, W)` as colours around mid-grey: `0.5 + g / (2 m)`, clamped.

    `g` are the values, and `m` is the quantile of their non-zero magnitudes that heat maps use too:
    a gradient has a few extreme pixels, and relative to their maximum all others would be grey.
    """
    values = change.detach().float().cpu()
    nonzero = values.abs()[values != 0].numpy()
    edge = float(np.quantile(nonzero, QUANTILE)) if nonzero.size else 1.0
    return (0.5 + values / (2 * max(edge, 1e-30))).clamp(0, 1)


def overlay(
    image: Tensor, heat: Tensor, *, opacity: float = 0.8, signed: bool | None = None
) -> Tensor:
    """Lay a map's colours over a pale grey version of the image.

    Args:
        image: `(3, H, W)` in [0, 1]; with another number of channels, their mean is shown.
        heat: `(h, w)` on any scale; resized bilinearly to the image's size.
        opacity: opacity of the strongest colours, in [0, 1]; others fade with their magnitude.
        signed: whether zero is in the middle; by default, whether any value is below zero.

    Returns:
        `(3, H, W)` in [0, 1].
    """
    picture, values = as_picture(image).detach().float().cpu(), heat.detach().float().cpu()
    if values.shape != picture.shape[1:]:
        size = (picture.shape[1], picture.shape[2])
        values = functional.interpolate(values[None, None], size, mode="bilinear")[0, 0]
    scale = HeatScale.of(values, signed=signed)
    luma = (picture * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    ground = 0.75 * luma + 0.25 * picture
    alpha = opacity * scale.strength(values)
    return ((1 - alpha) * ground + alpha * colourise(values, scale)).clamp(0, 1)


def colour_bar(
    page: Canvas, scale: HeatScale, left: float, top: float, width: float, height: float
) -> None:
    """Draw the colour bar of a heat map; its position and size on the page are in inches."""
    axes = page.axes(left, top, width, height)
    arrows = ("both" if scale.signed else "max") if scale.clipped else "neither"
    mappable = ScalarMappable(Normalize(scale.low, scale.high), scale.colours)
    formatter = ScalarFormatter(useMathText=False)
    formatter.set_powerlimits((-2, 3))
    bar = page.figure.colorbar(
        mappable,
        cax=axes,
        extend=arrows,
        extendfrac=0.04,
        ticks=MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]),
        format=formatter,
    )
    bar.outline.set_visible(False)
    axes.tick_params(length=2, width=0.6, pad=2)
    axes.yaxis.get_offset_text().set(fontsize=SMALL_PT, ha="left")
