"""What a pass keeps of every image by default: pooled value, maximum and its place; maps on demand.

Full maps of a ResNet-50 would take 22 TB a million images, these rows 0.2 TB for every layer and
some gigabytes for a few.
"""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import max_pool2d

from timmscope_registry import UnsupportedModel

from .base import Column, RowCollector

if TYPE_CHECKING:
    from torch import Tensor

    from timmscope_registry.hooks import Layer


class Pooled(RowCollector):
    """Spatial mean of every unit, without prefix tokens: ``pooled`` (C,) float32."""

    name = "pooled"

    def columns(self, layer: Layer) -> dict[str, Column]:
        """One value a unit."""
        return {"pooled": Column(shape=(layer.channels,), dtype="float32", fill=nan)}

    def reduce(self, layer: Layer, activation: Tensor) -> dict[str, Tensor]:
        """Mean over the grid, computed in float32 whatever the model's precision."""
        return {"pooled": layer.pooled(activation.float())}


class Extrema(RowCollector):
    """Maximum of every unit and its cell: ``max`` (C,) float32 and ``argmax`` (C,) int32.

    Cells are numbered row by row (y * width + x), the first of equal maxima counts. A map with a
    NaN has the maximum NaN and the cell -1.
    """

    name = "extrema"

    def columns(self, layer: Layer) -> dict[str, Column]:
        """One value and one cell a unit."""
        return {
            "max": Column(shape=(layer.channels,), dtype="float32", fill=nan),
            "argmax": Column(shape=(layer.channels,), dtype="int32", fill=-1),
        }

    def reduce(self, layer: Layer, activation: Tensor) -> dict[str, Tensor]:
        """Maximum over the grid."""
        value, cell = _maxima(cells(layer, activation))  # (B, C); the first maximum of equals
        cell = torch.where(value.isnan(), -1, cell)
        return {"max": value.float(), "argmax": cell.to(torch.int32)}


class Maps(RowCollector):
    """The whole map of every unit: ``maps`` (C, h, w) float32, C * h * w * 4 bytes an image."""

    name = "maps"

    def columns(self, layer: Layer) -> dict[str, Column]:
        """One map a unit; (C, 1, 1) for a vector."""
        height, width = layer.grid or (1, 1)
        if layer.layout == "tokens" and layer.grid is None:
            raise UnsupportedModel(f"layer {layer.name} has no grid, so it has no maps")
        return {"maps": Column(shape=(layer.channels, height, width), dtype="float32", fill=nan)}

    def reduce(self, layer: Layer, activation: Tensor) -> dict[str, Tensor]:
        """The map itself, as (B, C, h, w)."""
        return {"maps": layer.spatial(activation).float()}


def _maxima(found: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum of (B, C, P) over P and its first place, (B, C) each; NaN wins.

    Where channels are innermost, `max` looks at one value at a time; on a CPU the pooling kernel
    takes a vector of channels, by the same rules and up to ten times as fast.
    """
    innermost = found.stride(1) == 1 and found.stride(2) == found.shape[1]
    if found.device.type == "cpu" and found.is_floating_point() and innermost:
        column = found.transpose(1, 2).unsqueeze(2).permute(0, 3, 1, 2)  # (B, C, P, 1)
        value, place = max_pool2d(column, (found.shape[2], 1), return_indices=True)
        return value.flatten(1), place.flatten(1)
    value, place = found.max(2)
    return value, place


def cells(layer: Layer, activation: Tensor) -> Tensor:
    """Bring an activation to (B, C, P), its cells in image order; P is 1 for a vector.

    Raises:
        UnsupportedModel: the map has another size than the layer's grid, so cells mean nothing.
    """
    if layer.layout == "tokens" and layer.grid is None:
        return activation.transpose(1, 2)
    if layer.layout == "tokens" and layer.token_order is None:
        found = activation[:, layer.prefix_tokens :].transpose(1, 2)  # a view, where spatial copies
    elif layer.layout == "NHWC":
        found = activation.flatten(1, 2).transpose(1, 2)
    else:
        found = layer.spatial(activation).flatten(2)
    height, width = layer.grid or (1, 1)
    if found.shape[1:] != (layer.channels, height * width):
        raise UnsupportedModel(
            f"layer {layer.name} has {layer.channels} units on a {height}x{width} grid in the "
            f"catalogue and gave {tuple(activation.shape[1:])}; choose a layer of constant shape"
        )
    return found
