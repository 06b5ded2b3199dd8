"""The size of images for a further model, whose input may be larger or smaller."""

from __future__ import annotations

from collections.abc import Sequence

from timmscope import HookedModel, ParameterError


def relative_sides(
    shape: Sequence[int], model: HookedModel, other: HookedModel, *, what: str, parameter: str
) -> list[int] | None:
    """Return height and width of images for another model; None if both models take the same.

    Args:
        shape: channels, height and width of the images, as the model takes them.
        model: the model that the images are for.
        other: the other model.
        what: what the other model is, for messages, as in `surrogate`.
        parameter: the parameter that names it.

    Raises:
        ParameterError: the other model takes another number of channels.
    """
    if other.input_size[0] != shape[0]:
        raise ParameterError(
            f"the {what} {other.id} takes images of {other.input_size[0]} channels, and "
            f"{model.id} of {shape[0]}: take a {what} of the same channels",
            parameter=parameter,
        )
    given, taken = model.input_size[1:], other.input_size[1:]
    if given == taken:
        return None
    return [round(side * new / old) for side, new, old in zip(shape[1:], taken, given, strict=True)]
