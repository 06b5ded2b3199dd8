"""Layer and activations of the class activation maps that need no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from timmscope import HookedModel, Objective, TechniqueError, default_layer
from timmscope_registry.hooks import Layer


def grid_layer(model: HookedModel, objective: Objective, name: str | None) -> Layer:
    """The layer of that name, or the last one whose grid the objective depends on.

    Raises:
        LayerNotFound: there is no such layer.
        TechniqueError: it has no grid, or does not come before the objective.
    """
    if name is None:
        return model.layers[default_layer(model, objective)]
    layer = model.layers[name]
    last = min(model.layers[point].order for point in objective.points)
    why = ""
    if layer.grid is None:
        why = "has no grid and so no map"
    elif layer.order > last:
        why = "does not contribute to it"
    if why:
        instead = default_layer(model, objective)
        raise TechniqueError(
            f"{objective} cannot be mapped at layer {name!r}: it {why}; use layer={instead!r}"
        )
    return layer


def activations(
    model: HookedModel, images: Tensor, objective: Objective, layer: Layer
) -> tuple[Tensor, Tensor]:
    """A layer's grid `(B, C, h, w)` and the objective's values `(B,)`, without a graph."""
    with torch.no_grad(), model.record(layer.name, *objective.points) as recording:
        model(images)
    cells = layer.spatial(recording[layer.name])
    return (cells if cells.dtype == torch.float64 else cells.float()), objective(recording)
