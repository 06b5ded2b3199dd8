"""The first layer's filters as pictures: the one layer whose weights live in pixel space."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from timmscope import HookedModel, ParameterError, RepresentationTechnique, Sheet, UnsupportedModel


class Filters(RepresentationTechnique):
    """First-layer filters as a sheet (Krizhevsky, Sutskever & Hinton, NeurIPS 2012, figure 3).

    The first convolution that runs, be it a stem or a vision transformer's patch embedding. A
    weight `w` is shown as `0.5 + w / (2 s)`: 0 is mid-grey, and `s` is the largest absolute weight
    of all filters or of each. Weights act on normalised pixels; a filter's colour is the change
    that raises the unit. Weights are shown as stored, without a batch norm that may follow.

    Filters over 3 input channels are RGB pictures, those over 1 are grey. With any other number
    each input channel of each filter is a grey picture of its own, unless `channels` picks three.
    """

    reads: ClassVar[str] = "model"

    scale: Literal["common", "per-filter"] = "common"
    """One scale for all filters, so that strong and weak ones compare, or each its own."""
    order: Literal["unit", "strength"] = "unit"
    """By unit number, or the strongest (largest L2 norm) first."""
    channels: tuple[int, int, int] | None = None
    """Input channels to show as red, green and blue; by default as the class says."""

    def analyse(self, source: HookedModel, images: Any) -> Sheet:
        """The filters of a model; takes no images."""
        if images is not None:
            raise ParameterError(f"{self.title()} takes no images", parameter="images")
        name, convolution = _first_convolution(source)
        weights = convolution.weight.detach().float().cpu()  # (n, c, h, w)
        if not bool(torch.isfinite(weights).all()):
            raise UnsupportedModel(f"{name} of {source.id} has NaN or infinite weights")
        norms = weights.flatten(1).norm(dim=1)
        units = torch.arange(len(weights))
        if self.order == "strength":
            units = torch.argsort(norms, descending=True, stable=True)
        taps = weights.shape[1]
        if self.channels is not None:
            if not all(0 <= channel < taps for channel in self.channels):
                raise ParameterError(
                    f"channels is {self.channels}: {name} of {source.id} has input channels 0 to "
                    f"{taps - 1}",
                    parameter="channels",
                )
            weights = weights[:, list(self.channels)]
        # The scale comes from what is shown, so that the strongest weight shown is black or white.
        pictures = scaled(weights, self.scale)[units]
        tiles, channel_of = _tiles(pictures)
        unit_of = units.repeat_interleave(len(tiles) // len(units))
        rows = [
            {"unit": unit, "channel": channel, "norm": float(norms[unit])}
            for unit, channel in zip(unit_of.tolist(), channel_of, strict=True)
        ]
        height, width = weights.shape[2:]
        largest = float(weights.abs().max())
        spread = (
            f"black and white are ∓{largest:.3g}"
            if self.scale == "common"
            else "each filter is scaled to its own largest weight"
        )
        split = pictures.shape[1] not in (1, 3)
        return Sheet(
            provenance=self.provenance(source, layer=name),
            images=tiles,
            titles=[
                str(row["unit"]) if not split else f"{row['unit']}:{row['channel']}" for row in rows
            ],
            rows=rows,
            title=f"{source.id}  {name}: {len(units)} filters of {height}×{width}×{taps}",
            note=f"mid-grey is 0, {spread}" + ("; labels are unit:input channel" if split else ""),
            columns=pictures.shape[1] if split else min(16, math.ceil(math.sqrt(2 * len(units)))),
        )


def scaled(weights: Tensor, scale: Literal["common", "per-filter"]) -> Tensor:
    """Weights `(n, c, h, w)` as pixels in [0, 1]: 0 at 0.5, the largest magnitude at 0 or 1."""
    sizes = weights.abs().flatten(1).amax(1)
    limit = sizes.max().expand_as(sizes) if scale == "common" else sizes
    limit = torch.where(limit > 0, limit, torch.ones_like(limit))
    return 0.5 + weights / (2 * limit[:, None, None, None])


def _tiles(pictures: Tensor) -> tuple[Tensor, list[int | None]]:
    """RGB pictures `(m, 3, h, w)` and the input channel of each; None for all of them."""
    count, channels = pictures.shape[:2]
    if channels == 3:
        return pictures, [None] * count
    grey = pictures.flatten(0, 1)[:, None].expand(-1, 3, -1, -1).contiguous()
    return grey, [index % channels for index in range(count * channels)]


def _first_convolution(model: HookedModel) -> tuple[str, nn.Conv2d]:
    """The convolution that finishes first in a forward, and its name."""
    modules = dict(model.module.named_modules())
    for name in model.layers:
        module = modules.get(name.partition("#")[0])
        if isinstance(module, nn.Conv2d):
            return name.partition("#")[0], module
    first = ", ".join(
        f"{layer.name} ({layer.module_type})" for layer in list(model.layers.values())[:3]
    )
    raise UnsupportedModel(
        f"{model.id} has no 2-d convolution whose filters could be shown; it begins with {first}"
    )
