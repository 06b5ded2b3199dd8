"""A surrogate: the model whose gradient an attack follows in place of the attacked one's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor
from torch.nn import functional

from timmscope import HookedModel, ModelName, ParameterError, Technique
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
    if source.input_size[0] != shape[0]:
        raise ParameterError(
            f"the surrogate {source.id} takes images of {source.input_size[0]} channels, and "
            f"{model.id} of {shape[0]}: take a surrogate of the same channels",
            parameter="surrogate",
        )
    given, taken = model.input_size[1:], source.input_size[1:]
    if given == taken:
        return source, _as_they_are
    sides = [
        round(side * new / old) for side, new, old in zip(shape[1:], taken, given, strict=True)
    ]
    return source, partial(functional.interpolate, size=sides, mode="bilinear", antialias=True)


def _as_they_are(images: Tensor) -> Tensor:
    return images
