"""Which layers hold an image's style, and which its content, when nobody says.

Gatys et al. took the first activation of each of VGG's resolutions. The same idea for any encoder:
the first activation, and the last one of each resolution but the coarsest. An encoder that works at
one or two resolutions (ViT, Mixer) gives five layers evenly over its depth instead.
"""

from __future__ import annotations

import re
from itertools import groupby

from timmscope import HookedModel, UnsupportedModel
from timmscope_registry.hooks import Layer

WANTED = 5

_NO_ACTIVATION = re.compile(r"\w*Conv\dd(Same)?|BatchNorm\dd|Identity|Dropout\w*")


def style_layers(model: HookedModel) -> tuple[str, ...]:
    """About five layers from fine to coarse.

    Raises:
        UnsupportedModel: the model has no layer with a grid.
    """
    layers = _stages(model)
    by_grid = [list(group) for _, group in groupby(layers, key=lambda layer: layer.grid)]
    if len(by_grid) >= WANTED - 1:
        chosen = [group[-1] for group in by_grid[:-1]]
        if not layers[0].name.startswith(f"{chosen[0].name}."):  # a part of it is the same tensor
            chosen.insert(0, layers[0])
    else:
        last = len(layers) - 1
        chosen = [layers[round(step * last / (WANTED - 1))] for step in range(WANTED)]
    return tuple(dict.fromkeys(layer.name for layer in chosen))


def content_layers(model: HookedModel) -> tuple[str, ...]:
    """The last but one of the style layers: deep enough to forget texture, not place."""
    return style_layers(model)[-2:-1] or style_layers(model)


def _stages(model: HookedModel) -> list[Layer]:
    """Stages, blocks and activations of the trunk, in execution order."""
    layers = [
        layer
        for layer in model.layers.values()
        if layer.grid is not None
        and min(layer.grid) > 1
        and layer.name.count(".") <= 1
        and not _NO_ACTIVATION.fullmatch(layer.module_type)
    ]
    if not layers:
        raise UnsupportedModel(
            f"{model.id} has no layer with a grid and so no statistics over places: "
            "use another encoder"
        )
    return layers
