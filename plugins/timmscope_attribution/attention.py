"""Attention matrices of a vision transformer, as its blocks apply them.

timm's fused kernels never form the matrix, so they are switched off for the call. Which tokens the
classifier reads (the class token, a distillation token too, or all patches) is found by the
gradient of the objective at the last block's tokens, because models' own attributes are not always
right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from timmscope import HookedModel, Objective, TechniqueError, UnsupportedModel
from timmscope_registry.hooks import Layer

ALTERNATIVES = "use grad-cam, layer-cam or occlusion, which need no attention"

MatrixCallback = Callable[[str, Tensor], None]
"""Called with the name of a hook point and its matrix, `(B, heads, T, T)`."""


def attention_points(model: HookedModel) -> dict[str, Layer]:
    """Hook points of the attention matrices in order, each with the layer of its block.

    Raises:
        UnsupportedModel: the model is not a plain vision transformer; the message says why.
    """
    parts = [
        name for name, part in model.module.named_modules() if hasattr(part, "num_heads") and name
    ]
    if not parts:
        raise UnsupportedModel(f"{model.id} has no attention to map; {ALTERNATIVES}")
    points: dict[str, Layer] = {}
    for name in parts:
        if type(model.module.get_submodule(name)).__name__.startswith("AttentionPool"):
            continue  # reads the tokens after the last block; `tokens_read` covers it
        block = name.rpartition(".")[0]
        layer = model.layers.get(block)
        point = f"{name}.attn_drop"
        fits = layer is not None and layer.layout == "tokens" and layer.grid is not None
        if not fits or point not in dict(model.module.named_modules()):
            kind = type(model.module.get_submodule(name)).__name__
            raise UnsupportedModel(
                f"{model.id} has attention ({kind} at {name}) that is not one matrix over all "
                f"tokens of the image; {ALTERNATIVES}"
            )
        assert layer is not None
        points[point] = layer
    if len({layer.shape[0] for layer in points.values()}) > 1:
        raise UnsupportedModel(
            f"the number of tokens of {model.id} changes between blocks, so its attention matrices "
            f"cannot be multiplied; {ALTERNATIVES}"
        )
    return points


def attend(
    model: HookedModel,
    images: Tensor,
    objective: Objective,
    points: Mapping[str, Layer],
    callback: MatrixCallback,
) -> Tensor:
    """Run the model with fused attention off, and call back with each matrix `(B, heads, T, T)`.

    Returns:
        Scores `(B,)` of the objective.

    Raises:
        UnsupportedModel: a matrix does not attend over all tokens with weights that sum to 1.
    """

    def watch(point: str, layer: Layer) -> Callable[[Tensor], None]:
        def check(matrix: Tensor) -> None:
            tokens = layer.shape[0]
            values = matrix if matrix.dtype == torch.float64 else matrix.float()
            square = matrix.ndim == 4 and tuple(matrix.shape[2:]) == (tokens, tokens)
            if not square or float((values.sum(-1) - 1).abs().max()) > 0.02:
                raise UnsupportedModel(
                    f"{model.id} attends in windows, over channels or with weights that do not "
                    f"sum to 1 ({point} gives {tuple(matrix.shape[1:])} for {tokens} tokens); "
                    f"{ALTERNATIVES}"
                )
            callback(point, values)

        return check

    watched = {point: watch(point, layer) for point, layer in points.items()}
    with (
        torch.no_grad(),
        model.plain_attention(),
        model.watch(watched),
        model.record(*objective.points) as recording,
    ):
        model(images)
    return objective(recording)


def tokens_read(model: HookedModel, images: Tensor, objective: Objective, layer: Layer) -> Tensor:
    """Weights `(B, T)`, sum 1, of the tokens of a layer that the objective depends on.

    Every token with a gradient gets the same weight.

    Raises:
        TechniqueError: the objective depends on none of them.
    """
    _, _, gradient = model.layer_gradient(images, objective, layer.name)
    read = (gradient.abs().amax(2) > 0).float()
    if not bool(read.any(1).all()):
        raise TechniqueError(
            f"{objective} depends on no token after {layer.name!r} of {model.id}, so there is no "
            "attention to follow; is the classifier untrained (all zero)?"
        )
    return read / read.sum(1, keepdim=True)


def require_output(name: str, objective: Objective) -> None:
    """Refuse an objective inside the model, because attention is followed from the output back.

    Raises:
        TechniqueError: the objective is inside the model.
    """
    if objective.points != ("logits",):
        raise TechniqueError(
            f"{name} starts at the tokens that the classifier reads, and has no map for "
            f"{objective}; explain a class, or use grad-cam or occlusion"
        )


def as_grid(layer: Layer, tokens: Tensor) -> Tensor:
    """Values `(B, T)` of all tokens as a map `(B, h, w)`, without the prefix tokens."""
    one = replace(layer, channels=1, shape=(tokens.shape[1], 1))
    return one.spatial(tokens[..., None])[:, 0]
