"""A surrogate: the model whose gradient an attack follows in place of the attacked one's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor
from torch.nn import functional

from timmscope import HookedModel, ModelName, Technique
from timmscope_attack.relative_size import relative_sides
from timmscope_attack.view_gradient import View


def open_surrogate(
    attack: Technique, model: HookedModel, named: ModelName | None, shape: Sequence[int]
) -> tuple[HookedModel, View]:
    """Return the model whose gradient is followed, and how it sees images of the attacked model.

    Args:
        attack: the attack, whose parameter names the surrogate.
        model: the attacked model, which is its own surrogate if none is named.
        named: the value of the parameter `surrogate`.
        shape: channels, height and width of the images.

    Raises:
        ParameterError: the surrogate takes another number of channels.
    """
    source = model if named is None else attack.open_model(named)
    sides = relative_sides(shape, model, source, what="surrogate", parameter="surrogate")
    if sides is None:
        return source, _as_they_are
    return source, partial(functional.interpolate, size=sides, mode="bilinear", antialias=True)


def _as_they_are(images: Tensor) -> Tensor:
    return images
