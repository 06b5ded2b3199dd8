"""Measures the effective receptive field: the box that holds most of a unit's gradient energy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from timmscope.models import HookedModel
from timmscope.receptive_fields.field import ReceptiveField
from timmscope_registry import ParameterError, UnsupportedModel
from timmscope_registry.hooks import Layer

SHARE = 0.95
"""Share of the energy inside the box."""
NOISE_IMAGES = 8
_BATCH = 8


def noise(model: HookedModel) -> Tensor:
    """The default images of an effective field: uniform noise, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(NOISE_IMAGES, *model.input_size, generator=generator)


def effective(
    model: HookedModel,
    layer: Layer,
    images: Tensor,
    positions: Sequence[tuple[int, int]] | None,
    unit: int | None,
) -> ReceptiveField:
    """Measure an effective receptive field; see `receptive_field`."""
    if unit is not None and not 0 <= unit < layer.channels:
        raise ParameterError(
            f"layer {layer.name} has units 0 to {layer.channels - 1}, there is no unit {unit}",
            parameter="unit",
        )
    height, width = int(images.shape[2]), int(images.shape[3])
    # Energy by distance from the cell, so that images measured at different cells can be added.
    total = np.zeros((2 * height, 2 * width))
    rows = columns = 0
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        at = None if positions is None else positions[start : start + _BATCH]
        energy, cells, (rows, columns) = _energy(model, layer, batch, at, unit, start)
        for image_energy, (row, column) in zip(energy, cells, strict=True):
            down, across = height - row * height // rows, width - column * width // columns
            total[down : down + height, across : across + width] += image_energy
    if not total.sum() > 0:
        label = f"{layer.name}[{unit}]" if unit is not None else layer.name
        raise UnsupportedModel(
            f"no gradient of {label} reaches these images: the unit is silent there; "
            "give images and positions that activate it"
        )
    upper, lower, left, right = _box(total)
    offsets = (left - width, upper - height, right - width, lower - height)
    steps_y = np.arange(rows)[:, None] * height // rows
    steps_x = np.arange(columns)[None, :] * width // columns
    edges = [
        np.broadcast_to(offset + (steps_x, steps_y)[index % 2], (rows, columns))
        for index, offset in enumerate(offsets)
    ]
    unclipped = np.stack(edges, -1).astype(np.int64)
    clipped = unclipped.clip(0, [width, height, width, height])
    return ReceptiveField(
        layer.name,
        "effective",
        (height, width),
        (rows, columns),
        (lower - upper, right - left),
        (height / rows, width / columns),
        clipped,
        unclipped,
    )


def _energy(
    model: HookedModel,
    layer: Layer,
    images: Tensor,
    positions: Sequence[tuple[int, int]] | None,
    unit: int | None,
    start: int,
) -> tuple[NDArray[np.float64], list[tuple[int, int]], tuple[int, int]]:
    """Energy (B, H, W) with the sum 1 per image, the cell of each image, rows and columns."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        with model.record(layer.name) as recording:
            model(leaf)
        activation = layer.spatial(recording[layer.name])  # (B, C, h, w)
        rows, columns = int(activation.shape[2]), int(activation.shape[3])
        cells = list(positions or [(rows // 2, columns // 2)] * len(images))
        for row, column in cells:
            if not (0 <= row < rows and 0 <= column < columns):
                raise ParameterError(
                    f"layer {layer.name} has {rows}x{columns} cells, there is no cell "
                    f"({row}, {column})",
                    parameter="positions",
                )
        index = torch.arange(len(cells))
        down, across = (torch.tensor([cell[axis] for cell in cells]) for axis in (0, 1))
        values = activation[index, :, down, across]  # (B, C)
        if unit is None:
            # The expected square of a sum with random signs is the sum of the squares.
            generator = torch.Generator().manual_seed(start)
            signs = torch.randint(0, 2, values.shape, generator=generator) * 2 - 1
            score = (values * signs.to(values)).sum()
        else:
            score = values[:, unit].sum()
        (gradient,) = torch.autograd.grad(score, leaf)
    energy = gradient.double().square().sum(1).cpu().numpy()  # (B, H, W)
    sums = energy.sum((1, 2), keepdims=True)
    return energy / np.where(sums > 0, sums, 1), cells, (rows, columns)


def _box(energy: NDArray[np.float64]) -> tuple[int, int, int, int]:
    """Upper, lower, left and right edge of the smallest box with `SHARE` of the energy.

    The same energy is cut off at each side.
    """
    energy = energy / energy.sum()
    down, across = np.cumsum(energy.sum(1)), np.cumsum(energy.sum(0))
    corners = np.pad(energy.cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    def cut(tail: float) -> tuple[int, int, int, int]:
        sides = []
        for sums in (down, across):
            first = int(np.searchsorted(sums, tail, side="right"))
            last = int(np.searchsorted(sums, sums[-1] - tail, side="left"))
            sides += [first, max(first, last) + 1]
        return sides[0], sides[1], sides[2], sides[3]

    def inside(box: tuple[int, int, int, int]) -> float:
        upper, lower, left, right = box
        return float(
            corners[lower, right]
            - corners[upper, right]
            - corners[lower, left]
            + corners[upper, left]
        )

    low, high = 0.0, 1 - SHARE  # bisect the share to cut off at each side
    for _ in range(40):
        middle = (low + high) / 2
        if inside(cut(middle)) >= SHARE:
            low = middle
        else:
            high = middle
    return cut(low)
