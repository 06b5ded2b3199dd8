"""The default layers of style and content for any encoder.

Gatys et al. use the first activation at each resolution of VGG. For any encoder the defaults are
the first activation, and the last one at each resolution but the coarsest. For an encoder with one
or two resolutions (ViT, Mixer) they are five layers spread evenly over its depth.
"""

from __future__ import annotations

import re
from itertools import groupby

from timmscope import HookedModel, UnsupportedModel
from timmscope_registry.hooks import Layer

COUNT = 5

_NO_ACTIVATION = re.compile(r"\w*Conv\dd(Same)?|BatchNorm\dd|Identity|Dropout\w*")


def style_layers(model: HookedModel) -> tuple[str, ...]:
    """About five layers from fine to coarse.

    Raises:
        UnsupportedModel: the model has no layer with a grid.
    """
    layers = _stages(model)
    by_grid = [list(group) for _, group in groupby(layers, key=lambda layer: layer.grid)]
    if len(by_grid) >= COUNT - 1:
        chosen = [group[-1] for group in by_grid[:-1]]
        if not layers[0].name.startswith(
            f"{chosen[0].name}."
        ):  # its last part gives the same tensor
            chosen.insert(0, layers[0])
    else:
        last = len(layers) - 1
        chosen = [layers[round(step * last / (COUNT - 1))] for step in range(COUNT)]
    return tuple(dict.fromkeys(layer.name for layer in chosen))


def content_layers(model: HookedModel) -> tuple[str, ...]:
    """The last but one of the style layers, which keeps positions but not texture."""
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
            f"{model.id} has no layer with a grid, so there are no features by position to match: "
            "use another encoder"
        )
    return layers
