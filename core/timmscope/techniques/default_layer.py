"""Chooses the layer of a class activation map when the user names none.

A map needs a layer with a grid on whose cells the objective depends. In a network that pools its
last feature map, that is this feature map. In a transformer that classifies by its class token, the
output does not depend on the patch tokens of the last block, so the layer is the last block's first
norm. One rule finds both: the last layer in execution order whose gradient on the grid is not zero.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from timmscope.models import HookedModel
from timmscope.objectives import Objective
from timmscope_registry import TechniqueError
from timmscope_registry.hooks import Layer

_chosen: WeakKeyDictionary[HookedModel, dict[tuple[str, ...], str]] = WeakKeyDictionary()


def default_layer(model: HookedModel, objective: Objective) -> str:
    """Return the name of the last layer whose grid a bound objective depends on.

    It is found once per model and set of layers that the objective reads, by one forward and
    backward pass of a fixed noise image, so it does not depend on the explained images. Grids of
    one cell are skipped. Layers inside attention modules come last, because queries, keys and
    values are not features.

    Raises:
        TechniqueError: the objective depends on no layer with a grid.
    """
    known = _chosen.setdefault(model, {})
    if objective.points not in known:
        known[objective.points] = _find(model, objective)
    return known[objective.points]


def _find(model: HookedModel, objective: Objective) -> str:
    last = min(model.layers[point].order for point in objective.points)
    gridded = [layer for layer in model.layers.values() if _has_grid(layer) and layer.order <= last]
    outside = [layer for layer in gridded if not _inside_attention(model, layer)]
    activations, gradients = _probe(model, objective, gridded)
    for layer in [*reversed(outside), *reversed(gridded)]:
        gradient = gradients[layer.name]
        if gradient is not None and bool(layer.spatial(gradient).any()):
            return _shortest_name(layer, outside, activations)
    raise TechniqueError(
        f"{objective} depends on no layer of {model.id} that has a grid of more than one cell, "
        "so there is no map; is the classifier untrained (all zero)?"
    )


def _probe(
    model: HookedModel, objective: Objective, layers: list[Layer]
) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """Return the layers' activations on a noise image and the objective's gradients there."""
    noise = torch.rand(1, *model.input_size, generator=torch.Generator().manual_seed(0))
    names = [layer.name for layer in layers]
    with torch.inference_mode(False), torch.enable_grad():
        image = noise.to(model.device).requires_grad_()
        with model.record(*dict.fromkeys([*names, *objective.points])) as recording:
            model.defended(())(image)  # a defence may pass no gradient, and changes no layer
        score = objective.rows(0, 1)(recording).sum()
        activations = {name: recording[name] for name in names}
        reached = [name for name in names if activations[name].requires_grad]
        if not (score.requires_grad and reached):
            return activations, dict.fromkeys(names)
        inputs = [activations[name] for name in reached]
        gradients = torch.autograd.grad(score, inputs, allow_unused=True)
    return activations, dict.fromkeys(names) | dict(zip(reached, gradients, strict=True))


def _has_grid(layer: Layer) -> bool:
    return layer.grid is not None and layer.grid[0] * layer.grid[1] > 1


def _inside_attention(model: HookedModel, layer: Layer) -> bool:
    parts = layer.name.partition("#")[0].split(".")
    parents = (".".join(parts[:depth]) for depth in range(1, len(parts)))
    return any(hasattr(model.module.get_submodule(parent), "num_heads") for parent in parents)


def _shortest_name(layer: Layer, layers: list[Layer], activations: dict[str, Tensor]) -> str:
    """Return the shortest name of the layers with this same output: a stage, its last block, …"""
    tensor = activations[layer.name]
    same = [
        other
        for other in layers
        if activations[other.name].data_ptr() == tensor.data_ptr()
        and other.layout == layer.layout
        and other.shape == layer.shape
    ]
    return min(same or [layer], key=lambda other: (other.name.count("."), other.order)).name
