"""FMN: gradient steps in a ball whose radius follows the distance to the boundary."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    Goal,
    HookedModel,
    NearestFound,
    Norm,
    change_size,
    image_generators,
    project_change,
)
from timmscope_attack.minimum import (
    TINY,
    MinimumNormAttack,
    cosine,
    directions,
    free,
    largest_change,
)


class FMN(MinimumNormAttack):
    """FMN (fast minimum-norm) finds a small change in the norm L∞, L2, L1 or L0.

    `δ ← Π_ρ(δ + α·ĝ)`, clipped to [0, 1], where ĝ is the gradient of the margin at unit L2 length
    and Π_ρ the projection into the ball of radius ρ. Slopes that lead out of [0, 1] do not count:
    with them, images with many black or white pixels would not get far enough. Until the model is
    fooled once, ρ is at least `‖δ‖ + |margin| / ‖∇ margin‖*`, the distance to the boundary of the
    linearised model, where ‖·‖* is the dual norm. It becomes (1 − γ)·ρ where the model is fooled
    and (1 + γ)·ρ where it is not. For L0 the radius changes by at least one pixel. Both α and γ
    fall along a cosine. Cost: `steps` forward and backward passes per image.

    Paper:
        Pintor, Roli, Brendel & Biggio, "Fast Minimum-norm Adversarial Attacks through Adaptive Norm
        Constraints", NeurIPS 2021, arXiv:2102.12827.

    Inherited parameters:
        epsilon: largest change that counts as a success, in pixel units [0, 1], for l0 in pixels;
            by default any.
        draws: number of draws of a random defence over which each gradient is averaged; by default
            10. A model without a random defence needs one.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: a label or target is no class of the model, or the model has no classes.
        ParameterError: a parameter or `batch_size` is out of range, or a target equals its label.
        TechniqueError: the gradient is not finite.
        UnsupportedModel: the model has a defence without a gradient.
    """

    norm: Norm = "l2"
    """Norm of the change: `linf`, its largest value, `l2`, its Euclidean length, `l1`, the sum of
    its magnitudes, or `l0`, the number of changed pixels."""
    steps: int = Field(default=100, ge=1)
    """Number of steps."""
    step_size: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """L2 length α of the first step, in pixel units; the last is a hundredth of it."""
    gamma: float = Field(default=0.05, gt=0, lt=1)
    """Share γ by which the radius changes at the first step; at the last it is 0.001."""

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        """Return the nearest image of all steps that fools the model."""
        nearest = NearestFound(images, self.norm)
        generators = image_generators(len(images))
        rows = torch.arange(len(images), device=images.device)
        most = change_size(largest_change(images), self.norm)
        radius = torch.ones_like(most) if self.norm == "l0" else torch.zeros_like(most)
        changed = images.clone()
        for step in self.track(range(self.steps), f"{self.title()} steps"):
            outputs, gradient = self.outputs_and_gradient(
                model, changed, rows, goal, step=step, loss="margin"
            )
            gradient = gradient * free(changed, gradient)
            reached = goal.reached(outputs)
            nearest.offer(rows, changed, reached)
            gamma = cosine(self.gamma, min(self.gamma, 0.001), step, self.steps)
            if self.norm == "l0":
                fewer = torch.minimum(radius - 1, (radius * (1 - gamma)).floor())
                more = torch.maximum(radius + 1, (radius * (1 + gamma)).floor())
            else:
                fewer, more = radius * (1 - gamma), radius * (1 + gamma)
                dual = _dual_size(gradient, self.norm)
                reach = change_size(changed - images, self.norm) + goal.margin(outputs).abs() / dual
                more = torch.where(nearest.found, more, more.maximum(reach))
            radius = torch.where(reached, torch.minimum(fewer, nearest.sizes), more)
            radius = radius.minimum(most).clamp(min=0)
            move = cosine(self.step_size, self.step_size / 100, step, self.steps)
            change = changed - images + move * directions(gradient, generators)
            changed = (images + project_change(change, self.norm, radius)).clamp(0, 1)
        return nearest.images


def _dual_size(gradient: Tensor, norm: Norm) -> Tensor:
    """Norms `(B,)` float64: by how much a linear function rises in a ball of radius 1."""
    return change_size(gradient, _DUAL[norm]).clamp(min=TINY)


_DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
