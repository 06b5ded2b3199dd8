"""Fast gradient sign method."""

from __future__ import annotations

import torch
from torch import Tensor

from timmscope import HookedModel
from timmscope_attack.balls import Ball
from timmscope_attack.goals import Goal
from timmscope_attack.gradient import GradientAttack


class FGSM(GradientAttack):
    """FGSM (Goodfellow et al., ICLR 2015): one step of length epsilon up the cross-entropy.

    `x' = clip(x + ε · sign(∇ CE(f(x), y)))`; with `norm="l2"` the sign gives way to the gradient of
    unit length, with targets the step goes down their cross-entropy. One forward and one backward
    an image. On a linear model no other change within epsilon does better.
    """

    def perturb(
        self, model: HookedModel, images: Tensor, labels: Tensor, targets: Tensor | None
    ) -> Tensor:
        """Take the step."""
        ball = Ball.of(self.norm, self.epsilon, images)
        goal = Goal(labels=labels, targets=targets, loss="cross-entropy")
        rows = torch.arange(len(images), device=images.device)
        return self.climb(model, images, images, rows, goal, ball, step_size=ball.epsilon, steps=1)
