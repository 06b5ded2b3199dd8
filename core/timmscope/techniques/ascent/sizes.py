"""Says whether a model takes images of a size."""

from __future__ import annotations

import torch

from timmscope.models import HookedModel
from timmscope.objectives import Objective
from timmscope_registry import ParameterError


def check_size(
    model: HookedModel, objective: Objective, size: tuple[int, int], parameter: str, advice: str
) -> None:
    """Refuse a size that the model does not take.

    Args:
        model: the model.
        objective: a bound objective for one image.
        size: height and width in pixels.
        parameter: name of the parameter that decides the size.
        advice: what to do instead.

    Raises:
        ParameterError: the forward pass fails on a grey image of that size.
    """
    if size == model.input_size[1:]:
        return
    try:
        with torch.no_grad():
            grey = torch.full((1, model.input_size[0], *size), 0.5, device=model.device)
            model.score(grey, objective)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ParameterError(
            f"{model.id} does not take images of {size[0]}×{size[1]} px for {objective} "
            f"({reason}); {advice}",
            parameter=parameter,
        ) from error
