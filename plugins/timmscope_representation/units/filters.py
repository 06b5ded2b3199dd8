"""Filters as images: in colour where they act on pixels, else as grey slices."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    HookedModel,
    LayerName,
    ModelTechnique,
    ParameterError,
    Sheet,
    UnitNumbers,
    UnsupportedModel,
    chosen_units,
)
from timmscope_representation.units.conv_kernels import (
    Kernels,
    first_kernels,
    kernels_of,
    nearest_convolutions,
)

_UNITS_IN_SLICES = 16
"""Largest number of units shown by default where each takes a row of slices."""


class Filters(ModelTechnique):
    """Shows the weights of a layer as images.

    A weight w is drawn as `pixel = 0.5 + w / (2 s)`: 0 is mid-grey, and s is the largest absolute
    weight of all filters shown, or of each filter. By default the first layer is shown, which may
    be a convolution or the patch embedding of a vision transformer, linear ones included. Weights
    act on normalised pixels: the colour of a filter is the change of the image that raises the
    unit. Weights are shown as stored, without a batch norm that may follow.

    Filters over an RGB image are drawn in colour. In deeper layers, and for any other number of
    colours, each input channel of each filter is a grey slice, with one row per unit, unless
    `channels` chooses three. A depthwise filter has one slice.

    Paper:
        Krizhevsky, Sutskever & Hinton, "ImageNet Classification with Deep Convolutional Neural
        Networks", NeurIPS 2012, figure 3.

    Raises:
        LayerNotFound: there is no such layer, or it has no kernels.
        ParameterError: a parameter is out of range or does not fit the layer, or images are given.
        UnsupportedModel: no layer has filters, or weights are not finite.
    """

    layer: LayerName | None = None
    """Layer whose filters to show: a convolution, or a linear layer over patches."""
    units: UnitNumbers | None = None
    """Filters to show, as in `17` or `3,5,8-15`; by default all, or the first 16 where each takes a
    row of slices."""
    slices: int = Field(default=16, ge=1)
    """Number of input channels shown per filter: those of the largest L2 norm, if it has more."""
    scale: Literal["common", "per-filter"] = "common"
    """One scale for all filters, so that their strengths can be compared, or one per filter."""
    order: Literal["unit", "strength"] = "unit"
    """Order: by unit number, or largest L2 norm first."""
    channels: tuple[int, int, int] | None = None
    """Input channels to show as red, green and blue; by default the image's colours, else grey
    slices of each channel."""

    def analyse(self, model: HookedModel, images: Any) -> Sheet:
        """The filters of a model; it takes no images.

        Raises:
            LayerNotFound: there is no such layer, or it has no kernels.
            ParameterError: parameters do not fit the layer, or images are given.
            UnsupportedModel: no layer has filters, or weights are not finite.
        """
        if images is not None:
            raise ParameterError(f"{self.title()} takes no images", parameter="images")
        found = first_kernels(model) if self.layer is None else kernels_of(model, self.layer)
        weights = found.weight  # (n, c, h, w)
        taps, height, width = weights.shape[1:]
        if not bool(torch.isfinite(weights).all()):
            raise UnsupportedModel(f"{found.layer} of {model.id} has NaN or infinite weights")
        in_colour = self.channels is not None or (found.on_pixels and taps in (1, 3))
        if self.layer is not None and height == width == 1 and not in_colour:
            near = nearest_convolutions(model, found.layer, least=2)
            hint = f"; larger kernels: {', '.join(near)}" if near else ""
            raise ParameterError(
                f"{found.layer} of {model.id} has kernels of 1×1, which have no picture: each "
                f"is a list of {taps} numbers{hint}",
                parameter="layer",
            )
        norms = weights.flatten(1).norm(dim=1)
        units = torch.tensor(chosen_units(self.units, found.layer, len(weights)))
        if self.order == "strength":
            units = units[torch.argsort(norms[units], descending=True, stable=True)]
        in_rows = not in_colour and taps > 1
        most = _UNITS_IN_SLICES if self.units is None and in_rows else len(units)
        units = units[:most]
        shown = self._picked(found, model)[units] if self.channels is not None else weights[units]
        inputs = None if in_colour else _strongest(found, units, self.slices)
        if inputs is not None:
            firsts = torch.tensor([found.inputs(unit).start for unit in units.tolist()])
            shown = torch.take_along_dim(shown, (inputs - firsts[:, None])[..., None, None], 1)
        # The scale comes from the weights shown, so that the largest of them is black or white.
        tiles = scaled(shown, self.scale)
        if tiles.shape[1] != 3 or inputs is not None:
            tiles = tiles.flatten(0, 1)[:, None].expand(-1, 3, -1, -1).contiguous()
        each = len(tiles) // len(units)
        rows = [
            {
                "unit": int(unit),
                "channel": None if inputs is None else int(inputs[at, place]),
                "norm": float(norms[unit]),
            }
            for at, unit in enumerate(units)
            for place in range(each)
        ]
        per_group = f" in {found.groups} groups" if 1 < found.groups < len(weights) else ""
        kind = f"filters of {height}×{width}×{taps}"
        if _depthwise(found):
            kind = f"depthwise filters of {height}×{width}"
        return Sheet(
            provenance=self.provenance(model, layer=found.layer),
            images=tiles,
            titles=[_label(row, in_rows) for row in rows],
            rows=rows,
            title=f"{model.id}  {found.layer}: {len(weights)} {kind}{per_group}",
            note="; ".join(self._note(found, units, shown, in_rows)),
            columns=each if in_rows else min(16, math.ceil(math.sqrt(2 * len(units)))),
            row_labels=[str(unit) for unit in units.tolist()] if in_rows else None,
        )

    def _picked(self, found: Kernels, model: HookedModel) -> Tensor:
        """Three input channels of every filter, for red, green and blue."""
        taps = found.weight.shape[1]
        if found.groups > 1:
            raise ParameterError(
                f"channels is {self.channels}: the filters of {found.layer} do not share input "
                f"channels, it has {found.groups} groups",
                parameter="channels",
            )
        assert self.channels is not None
        if not all(0 <= channel < taps for channel in self.channels):
            raise ParameterError(
                f"channels is {self.channels}: {found.layer} of {model.id} has input channels 0 to "
                f"{taps - 1}",
                parameter="channels",
            )
        return found.weight[:, list(self.channels)]

    def _note(self, found: Kernels, units: Tensor, shown: Tensor, in_rows: bool) -> list[str]:
        """Meaning of the grey levels, and what is left out."""
        count, taps = found.weight.shape[:2]
        parts = [
            f"mid-grey is 0, black and white are ∓{float(shown.abs().max()):.3g}"
            if self.scale == "common"
            else "mid-grey is 0, each filter is scaled to its own largest weight"
        ]
        if self.channels is not None:
            red, green, blue = self.channels
            parts.append(f"red, green and blue are input channels {red}, {green} and {blue}")
        if in_rows:
            parts.append("one row per unit, below each slice its input channel")
        if in_rows and shown.shape[1] < taps:
            parts.append(f"the {shown.shape[1]} strongest of {taps} input channels of each unit")
        if self.units is None and len(units) < count:
            which = "strongest" if self.order == "strength" else "first"
            parts.append(f"the {which} {len(units)} of {count} units")
        return parts


def scaled(weights: Tensor, scale: Literal["common", "per-filter"]) -> Tensor:
    """Weights `(n, c, h, w)` as pixels in [0, 1]: 0 at 0.5, the largest magnitude at 0 or 1."""
    sizes = weights.abs().flatten(1).amax(1)
    limit = sizes.max().expand_as(sizes) if scale == "common" else sizes
    limit = torch.where(limit > 0, limit, torch.ones_like(limit))
    return 0.5 + weights / (2 * limit[:, None, None, None])


def _strongest(found: Kernels, units: Tensor, most: int) -> Tensor:
    """For each unit the input channels to show, in order `(n, k)`: those of the largest norm."""
    chosen = []
    for unit in units.tolist():
        norms = found.weight[unit].flatten(1).norm(dim=1)
        places = torch.argsort(norms, descending=True, stable=True)[:most].sort().values
        chosen.append(places + found.inputs(unit).start)
    return torch.stack(chosen)


def _depthwise(found: Kernels) -> bool:
    return found.groups == len(found.weight) > 1 and found.weight.shape[1] == 1


def _label(row: dict[str, Any], in_rows: bool) -> str:
    return str(row["channel"] if in_rows else row["unit"])
