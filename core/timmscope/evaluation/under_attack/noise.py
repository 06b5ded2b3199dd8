"""Random noise as an attack: what a size of change does without any method."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from timmscope.models import HookedModel
from timmscope.techniques.attack import AttackTechnique
from timmscope.techniques.goal import Goal
from timmscope.techniques.session import image_generators


class RandomNoise(AttackTechnique):
    """Tries random changes whose norm is epsilon, and keeps the first that reaches the goal.

    An attack that follows a gradient and does worse follows a useless gradient. Cost: at most
    `draws` forward passes per image.
    """

    uses_gradients = False

    draws: int = Field(default=50, ge=1)
    """Largest number of changes that are tried."""

    @classmethod
    def title(cls) -> str:
        """Name of the attack in tables."""
        return "noise"

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        """Try one change after the other on the images that are not solved."""
        ball, changed = self.ball(images), images.clone()
        generators = image_generators(len(images))
        rows = torch.arange(len(images), device=images.device)
        for _ in self.track(range(self.draws), "noise"):
            own = [generators[row] for row in rows.tolist()]
            tried = (images[rows] + ball.noise(images[rows], own)).clamp(0, 1)
            with self.only(rows), torch.no_grad():
                reached = goal.rows(rows).reached(goal.rows(rows).outputs(model, tried))
            changed[rows[reached]] = tried[reached]
            rows = rows[~reached]
            if not len(rows):
                break
        return changed
