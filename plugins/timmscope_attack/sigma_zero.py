"""σ-zero: few changed pixels, by the gradient of a smooth count of them."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from timmscope import Goal, HookedModel, NearestFound
from timmscope_attack.minimum import TINY, MinimumNormAttack, cosine


class SigmaZero(MinimumNormAttack):
    """σ-zero changes few pixels, by descent of a smooth count of the pixels that change.

    `min over δ of max(−margin, 0) + (1/d) · Σ ‖δ_p‖² / (‖δ_p‖² + σ)` over the d pixels p: each step
    follows the gradient, scaled so that its largest value is 1, with Adam, and then every pixel
    whose largest change is below a threshold τ gets its original value back. τ rises where the
    image fools the model and falls where it does not, so that it finds how many pixels are needed.
    The count is of pixels with all their channels. Cost: `steps` forward and backward passes per
    image.

    Paper:
        Cinà, Villani, Pintor, Schönherr, Biggio & Pelillo, "σ-zero: Gradient-based Optimization of
        ℓ0-norm Adversarial Examples", ICLR 2025, arXiv:2402.01879.

    Inherited parameters:
        epsilon: largest number of changed pixels that counts as a success; by default any.
        draws: number of draws of a random defence over which each gradient is averaged; by default
            10. A model without a random defence needs one.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: a label or target is no class of the model, or the model has no classes.
        ParameterError: a parameter or `batch_size` is out of range, or a target equals its label.
        TechniqueError: the gradient is not finite.
        UnsupportedModel: the model has a defence without a gradient.
    """

    norm: Literal["l0"] = "l0"
    """Norm of the change: `l0`, the number of changed pixels."""
    steps: int = Field(default=1000, ge=1)
    """Number of steps."""
    step_size: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Size of the first step, in pixel units; the last is a tenth of it."""
    sigma: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    """Squared change σ that counts as half a pixel."""
    threshold: float = Field(default=0.3, ge=0, le=1)
    """First threshold τ."""
    threshold_step: float = Field(default=0.01, ge=0, le=1)
    """By how much τ changes at the first step; in proportion to the size of later steps."""

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        """Return the image of fewest changed pixels, of all steps, that fools the model."""
        nearest = NearestFound(images, self.norm)
        rows = torch.arange(len(images), device=images.device)
        change, mean, variance = (torch.zeros_like(images) for _ in range(3))
        threshold = torch.full((len(images), 1, 1, 1), self.threshold).to(images)
        for step in self.track(range(self.steps), f"{self.title()} steps"):
            changed = images + change
            outputs, gradient = self.outputs_and_gradient(
                model, changed, rows, goal, step=step, loss="margin"
            )
            reached = goal.reached(outputs)
            nearest.offer(rows, changed, reached)
            gradient = self._count_gradient(change) - gradient * ~reached.view(-1, 1, 1, 1)
            largest = gradient.flatten(1).abs().amax(1).clamp(min=TINY)
            gradient = gradient / largest.view(-1, 1, 1, 1)
            mean = 0.9 * mean + 0.1 * gradient
            variance = 0.999 * variance + 0.001 * gradient**2
            size = cosine(self.step_size, self.step_size / 10, step, self.steps)
            unbiased = (variance / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            change = change - size * mean / (1 - 0.9 ** (step + 1)) / unbiased
            change = (images + change).clamp(0, 1) - images
            adapt = self.threshold_step * size / self.step_size
            threshold = threshold + torch.where(reached, adapt, -adapt).view(-1, 1, 1, 1)
            threshold = threshold.clamp(0, 1)
            change = change * (change.abs().amax(1, keepdim=True) >= threshold)
        return nearest.images

    def _count_gradient(self, change: Tensor) -> Tensor:
        """Return the gradient `(B, C, H, W)` of the smooth share of changed pixels."""
        squared = (change**2).sum(1, keepdim=True)
        pixels = change[0, 0].numel()
        return 2 * change * self.sigma / (squared + self.sigma) ** 2 / pixels
