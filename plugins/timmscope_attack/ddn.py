"""DDN: steps of the gradient's direction, on a sphere that shrinks while the model is fooled."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from timmscope import Goal, HookedModel, NearestFound, image_generators
from timmscope_attack.minimum import (
    TINY,
    MinimumNormAttack,
    cosine,
    directions,
    largest_change,
    lengths,
)


class DDN(MinimumNormAttack):
    """DDN (decoupled direction and norm) finds a small L2 change in a fixed number of steps.

    `δ ← ρ · (δ + α·ĝ) / ‖δ + α·ĝ‖₂`, clipped to [0, 1], where ĝ is the gradient of the
    cross-entropy at unit length. The radius ρ becomes (1 − γ)·ρ where the image fools the model and
    (1 + γ)·ρ where it does not; α falls from 1 to 0.01 along a cosine. Since the radius is decided
    by the prediction alone, there is no constant to search for: on digits it finds smaller changes
    than Carlini and Wagner's attack in a fifteenth of its passes. Where the gradient is zero, the
    step is random. Cost: `steps` forward and backward passes per image.

    Paper:
        Rony, Hafemann, Oliveira, Ben Ayed, Sabourin & Granger, "Decoupling Direction and Norm for
        Efficient Gradient-Based L2 Adversarial Attacks and Defenses", CVPR 2019, arXiv:1811.09600.

    Inherited parameters:
        epsilon: largest L2 change that counts as a success, in pixel units [0, 1]; by default any.
        draws: number of draws of a random defence over which each gradient is averaged; by default
            10. A model without a random defence needs one.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: a label or target is no class of the model, or the model has no classes.
        ParameterError: a parameter or `batch_size` is out of range, or a target equals its label.
        TechniqueError: the gradient is not finite.
        UnsupportedModel: the model has a defence without a gradient.
    """

    norm: Literal["l2"] = "l2"
    """Norm of the change: `l2`, its Euclidean length."""
    steps: int = Field(default=100, ge=1)
    """Number of steps."""
    gamma: float = Field(default=0.05, gt=0, lt=1)
    """Share γ by which the radius changes at each step."""
    first_radius: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Radius of the first step, in pixel units."""
    levels: int | None = Field(default=None, ge=2)
    """Round every step to this number of levels; 256 finds images that stay adversarial when they
    are saved with 8 bits. By default no step is rounded."""

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        """Return the nearest image of all steps that fools the model."""
        nearest = NearestFound(images, self.norm)
        generators = image_generators(len(images))
        rows = torch.arange(len(images), device=images.device)
        most = lengths(largest_change(images))
        radius = torch.full_like(most, self.first_radius)
        changed = images.clone()
        for step in self.track(range(self.steps), f"{self.title()} steps"):
            outputs, gradient = self.outputs_and_gradient(model, changed, rows, goal, step=step)
            reached = goal.reached(outputs)
            nearest.offer(rows, changed, reached)
            move = cosine(1.0, 0.01, step, self.steps) * directions(gradient, generators)
            change = changed - images + move
            factor = torch.where(reached, 1 - self.gamma, 1 + self.gamma).view(-1, 1, 1, 1)
            radius = (radius * factor).minimum(most)
            changed = images + change * (radius / lengths(change).clamp(min=TINY))
            if self.levels is not None:
                changed = (changed * (self.levels - 1)).round() / (self.levels - 1)
            changed = changed.clamp(0, 1)
        return nearest.images
