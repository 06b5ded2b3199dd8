"""Reads the classes that a caller names, once or once per image, as indices."""

from __future__ import annotations

import torch
from torch import Tensor

from timmscope.models import HookedModel
from timmscope.objectives import class_logit
from timmscope.techniques import arguments
from timmscope_registry import ObjectiveError


def class_indices(
    model: HookedModel, classes: arguments.Classes, batch: Tensor, what: str
) -> Tensor:
    """Return class indices `(B,)` from one class or one per image, by index or name.

    Args:
        model: the model that has the classes.
        classes: the classes.
        batch: `(B, C, H, W)`, the images that they belong to.
        what: what the classes are, in the plural, for error messages.

    Raises:
        ObjectiveError: the model has no such class, or their number is not that of the images.
    """
    goal = class_logit(classes)  # type: ignore[arg-type]
    given = goal.targets  # type: ignore[attr-defined]
    if len(given) not in (1, len(batch)):
        raise ObjectiveError(
            f"{len(given)} {what} for {len(batch)} images: give one, or one per image"
        )
    indices: tuple[int, ...] = goal.bind(model, batch).targets  # type: ignore[attr-defined]
    return torch.tensor(indices, device=batch.device).expand(len(batch)).clone()
