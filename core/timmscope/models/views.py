"""Makes models that share a model's module: for images of another size, or behind defences.

The grids of tokens in a model's layers belong to one image size, so a model keeps a view of itself
for each of the last few sizes.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from timmscope_registry import UnsupportedModel

if TYPE_CHECKING:
    from timmscope.models.hooked_model import HookedModel
    from timmscope_registry.hooks import ModelHooks

_MOST_SIZES = 4
"""Number of other image sizes of which a model keeps the layers."""


def sharing(model: HookedModel, **changes: Any) -> HookedModel:
    """Return a model that shares all attributes with another, except `changes`."""
    twin = object.__new__(type(model))
    vars(twin).update(vars(model), views={}, **changes)
    return twin


def at_size(model: HookedModel, size: tuple[int, int]) -> HookedModel:
    """Return the view of a model for images of a height and width.

    Raises:
        UnsupportedModel: the model does not take images of that size.
    """
    if size not in model.views:
        hooks = hooks_at(model, size)
        preprocessing = replace(model.preprocessing, input_size=(model.input_size[0], *size))
        if len(model.views) >= _MOST_SIZES:
            del model.views[next(iter(model.views))]
        model.views[size] = sharing(model, hooks=hooks, preprocessing=preprocessing)
    return model.views[size]


def hooks_at(model: HookedModel, size: tuple[int, int]) -> ModelHooks:
    """Return hooks with the layers for images of a height and width.

    Raises:
        UnsupportedModel: the model does not take images of that size.
    """
    hooks = model.hooks.at_size(*size)
    try:
        hooks.layers  # noqa: B018
    except UnsupportedModel as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        height, width = model.input_size[1:]
        parameters = inspect.signature(type(model.module)).parameters
        other = ""
        if "dynamic_img_size" in parameters:
            other = ", or load it with dynamic_img_size=true"
        elif "strict_img_size" in parameters:
            other = ", or load it with strict_img_size=false"
        raise UnsupportedModel(
            f"{model.id} does not take images of {size[0]}×{size[1]} px ({reason}); give it "
            f"images of {height}×{width} px{other}"
        ) from error
    return hooks
