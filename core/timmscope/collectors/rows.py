"""Row collectors: each unit's mean and maximum in every image, and on request its whole map.

All maps of a ResNet-50 take 22 TB for a million images. Means and maxima take 0.2 TB for all
layers, and a few gigabytes for a few layers.
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
        """Return a column with one value per unit."""
        return {"pooled": Column(shape=(layer.channels,), dtype="float32", fill=nan)}

    def reduce(self, layer: Layer, activation: Tensor) -> dict[str, Tensor]:
        """Return the mean over the grid, computed in float32 at any precision of the model."""
        return {"pooled": layer.pooled(activation.float())}


class Extrema(RowCollector):
    """Maximum of every unit and its cell: ``max`` (C,) float32 and ``argmax`` (C,) int32.

    Cells are numbered row by row (y * width + x). If several cells share the maximum, the first
    one counts. If a map contains NaN, its maximum is NaN and its cell is -1.
    """

    name = "extrema"

    def columns(self, layer: Layer) -> dict[str, Column]:
        """Return columns with one value and one cell per unit."""
        return {
            "max": Column(shape=(layer.channels,), dtype="float32", fill=nan),
            "argmax": Column(shape=(layer.channels,), dtype="int32", fill=-1),
        }

    def reduce(self, layer: Layer, activation: Tensor) -> dict[str, Tensor]:
        """Return the maximum over the grid and its cell."""
        value, cell = _maxima(cells(layer, activation))  # (B, C)
        cell = torch.where(value.isnan(), -1, cell)
        return {"max": value.float(), "argmax": cell.to(torch.int32)}


class Maps(RowCollector):
    """The whole map of every unit: ``maps`` (C, h, w) float32, C * h * w * 4 bytes per image."""

    name = "maps"

    def columns(self, layer: Layer) -> dict[str, Column]:
        """Return a column with one map per unit; its shape is (C, 1, 1) for a vector.

        Raises:
            UnsupportedModel: the layer has tokens without a grid.
        """
        height, width = layer.grid or (1, 1)
        if layer.layout == "tokens" and layer.grid is None:
            raise UnsupportedModel(f"layer {layer.name} has no grid, so it has no maps")
        return {"maps": Column(shape=(layer.channels, height, width), dtype="float32", fill=nan)}

    def reduce(self, layer: Layer, activation: Tensor) -> dict[str, Tensor]:
        """Return the activation as maps (B, C, h, w)."""
        return {"maps": layer.spatial(activation).float()}


def _maxima(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum over P of values (B, C, P) and its first position, each (B, C).

    NaN counts as the largest value.

    If channels are innermost in memory, `max` reads one value at a time on a CPU. The kernel for
    max pooling then reads a vector of channels: its results are the same, and it is up to ten times
    as fast.
    """
    channels_last = values.stride(1) == 1 and values.stride(2) == values.shape[1]
    if values.device.type == "cpu" and values.is_floating_point() and channels_last:
        column = values.transpose(1, 2).unsqueeze(2).permute(0, 3, 1, 2)  # (B, C, P, 1)
        maximum, cell = max_pool2d(column, (values.shape[2], 1), return_indices=True)
        return maximum.flatten(1), cell.flatten(1)
    maximum, cell = values.max(2)
    return maximum, cell


def cells(layer: Layer, activation: Tensor) -> Tensor:
    """Convert an activation to (B, C, P), its cells in image order; P is 1 for a vector.

    Raises:
        UnsupportedModel: the size of the map differs from the layer's grid in the catalogue.
    """
    if layer.layout == "tokens" and layer.grid is None:
        return activation.transpose(1, 2)
    if layer.layout == "tokens" and layer.token_order is None:
        values = activation[:, layer.prefix_tokens :].transpose(1, 2)  # a view; spatial() copies
    elif layer.layout == "NHWC":
        values = activation.flatten(1, 2).transpose(1, 2)
    else:
        values = layer.spatial(activation).flatten(2)
    height, width = layer.grid or (1, 1)
    if values.shape[1:] != (layer.channels, height * width):
        raise UnsupportedModel(
            f"layer {layer.name} has {layer.channels} units on a {height}x{width} grid in the "
            f"catalogue, but returned {tuple(activation.shape[1:])}; choose a layer of constant "
            "shape"
        )
    return values
