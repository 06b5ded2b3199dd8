"""FGSM: one step along the sign of the gradient."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from timmscope import Goal, HookedModel
from timmscope_attack.gradient import GradientAttack


class FGSM(GradientAttack):
    """FGSM takes one step of length epsilon that raises the cross-entropy of the label.

    `x' = clip(x + ε · sign(∇ CE(f(x), y)))`. With `norm="l2"` the gradient is scaled to length ε
    instead of taking its sign; with a target the step lowers the target's cross-entropy. On a
    linear model no other change within ε does better. Cost: one forward and one backward pass per
    image.

    Paper:
        Goodfellow, Shlens & Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015,
        arXiv:1412.6572.

    Inherited parameters:
        epsilon: radius of the ball in pixel units [0, 1]; by default 8/255 for linf, 3.0 (at
            224×224) for l2.
        draws: number of draws of a random defence over which each gradient is averaged; by default
            10. A model without a random defence needs one.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: a label or target is no class of the model, or the model has no classes.
        ParameterError: a parameter or `batch_size` is out of range, or a target equals its label.
        TechniqueError: the gradient is not finite.
        UnsupportedModel: the model has a defence without a gradient.
    """

    norm: Literal["linf", "l2"] = "linf"
    """Norm of the change: `linf`, its largest value, or `l2`, its Euclidean length."""

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        """One step from each image."""
        ball = self.ball(images)
        rows = torch.arange(len(images), device=images.device)
        step = ball.epsilon
        return self.climb(model, images, images, rows, goal, ball, step_size=step, steps=1)[0]
