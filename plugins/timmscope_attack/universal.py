"""Universal adversarial perturbations: one change that fools a model on most images."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from timmscope import Goal, HookedModel, ImageBatches, image_rows
from timmscope_attack.deepfool import DeepFool
from timmscope_attack.universal_ascent import UniversalAscent

_STEPS = 10
"""Largest number of DeepFool's steps for an image."""
_ENOUGH = 0.8
"""Share of images that reach the goal after which `deepfool` stops."""


class UniversalAdversarialPerturbation(UniversalAscent):
    """A universal perturbation fools a model on most images, also on those it was not fitted on.

    - `minibatch`: `v ← Π(v + α · steepest(∇ Σ min(loss(f(clip(x + v))), β)))` over small batches,
      from v = 0. Π is the projection into the ball, and `steepest` the sign (linf) or the gradient
      at unit length (l2). Without the limit β, a few images of large loss would decide every step.
      The step α falls linearly to a tenth, so that the last batches do not undo what the others
      have found. Each step meets a random defence with a new draw. This is stochastic gradient
      ascent (Shafahi et al.). Cost: `epochs` forward and backward passes per image.
    - `deepfool`: `v ← Π(v + r)` for the smallest change r that DeepFool finds, in at most ten
      steps, for an image x + v that does not reach the goal (Moosavi-Dezfooli et al.). It stops
      after a pass in which 80 % of the images reached the goal when their turn came. The changes of
      a batch are found together, and their mean is added; the paper has batches of one image. Cost:
      two forward passes per image and pass, and for an image that is not fooled mostly three to
      five steps of DeepFool, each of a forward and nine backward passes.

    Paper:
        - Moosavi-Dezfooli, Fawzi, Fawzi & Frossard, "Universal Adversarial Perturbations", CVPR
          2017, arXiv:1610.08401.
        - Shafahi, Najibi, Xu, Dickerson, Davis & Goldstein, "Universal Adversarial Training", AAAI
          2020, arXiv:1811.11304.

    Inherited parameters:
        epsilon: radius of the ball in pixel units [0, 1]; by default 10/255 for linf, 2000/255 (at
            224×224) for l2.
        epochs: passes over the images.
        batch: images per step.
        loss: loss to raise; the gradients of `margin` and `dlr` do not vanish where the softmax
            saturates.
        limit: loss above which an image no longer counts; for an objective the value to reach does
            this.
        surrogate: model whose gradient is followed; by default the attacked model itself.

    Raises:
        ImageError: there are no images, or none can be read.
        ObjectiveError: the model has no such class, or no classes, or the objective does not fit.
        ParameterError: a parameter or `batch_size` is out of range, no image is left to fit on, the
            split needs labels, or an objective has no value.
        TechniqueError: the gradient is not finite.
        UnsupportedModel: the model whose gradient is followed has none.
    """

    norm: Literal["linf", "l2"] = "linf"
    """Norm of the perturbation: `linf`, its largest value, or `l2`, its Euclidean length."""
    method: Literal["minibatch", "deepfool"] = "minibatch"
    """How it is found: `minibatch`, by ascent of the loss of small batches, or `deepfool`, as a sum
    of smallest changes of single images."""
    step_size: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Length of the first step of `minibatch` in the norm, in pixel units; by default
    epsilon / 5."""

    @model_validator(mode="after")
    def _follows_the_model_itself(self) -> UniversalAdversarialPerturbation:
        if self.method == "deepfool" and self.surrogate is not None:
            raise ValueError(
                "the method deepfool follows the attacked model itself: take minibatch for a "
                "surrogate"
            )
        return self

    def fit(self, model: HookedModel, batches: ImageBatches, goal: Goal) -> Tensor:
        """Climb the limited loss, or add up smallest changes."""
        found = self._climbed if self.method == "minibatch" else self._added_up
        return found(model, batches, goal)

    def _climbed(self, model: HookedModel, batches: ImageBatches, goal: Goal) -> Tensor:
        """Climb the limited loss of one batch after the other."""
        start = torch.zeros(1, *batches.shape, device=model.device)
        ball = self.ball(start)
        found = self.ascend(
            model,
            batches,
            goal,
            start,
            step_size=ball.epsilon / 5 if self.step_size is None else self.step_size,
            changed=lambda images, found: (images + found).clamp(0, 1),
            move=lambda found, slope, size: ball.project(found + size * ball.steepest(slope)),
        )
        return found[0]

    def _added_up(self, model: HookedModel, batches: ImageBatches, goal: Goal) -> Tensor:
        """Add the smallest changes of images that do not reach the goal yet."""
        found = torch.zeros(1, *batches.shape, device=model.device)
        ball, nearest = self.ball(found), DeepFool(norm=self.norm, steps=_STEPS)
        for epoch in range(self.epochs):
            fooled = 0
            for images, rows in batches.epoch(epoch, self.batch):
                moved = (images + found).clamp(0, 1)
                with image_rows(rows.tolist()):
                    changes = nearest.perturb(model, moved, goal.rows(rows)) - moved
                missing = (changes != 0).flatten(1).any(1)
                fooled += int((~missing).sum())
                if bool(missing.any()):
                    found = ball.project(found + changes[missing].mean(0, keepdim=True))
            if fooled >= _ENOUGH * len(batches):
                break
        return found[0]
