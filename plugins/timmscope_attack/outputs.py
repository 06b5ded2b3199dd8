"""What a goal depends on, without a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from timmscope import Goal, HookedModel, mean_over_draws


def mean_outputs(
    model: HookedModel, images: Tensor, goal: Goal, *, step: int, draws: int | None
) -> Tensor:
    """Return the outputs of a goal for images, averaged over draws of a random defence.

    Args:
        model: the model.
        images: `(n, C, H, W)` in [0, 1].
        goal: the goal of these images.
        step: number of the step, from 0; each step has draws of its own.
        draws: number of draws; None for the default.
    """

    def compute() -> tuple[Tensor]:
        with torch.no_grad():
            return (goal.outputs(model, images),)

    return mean_over_draws(model, compute, step=step, draws=draws)[0]
