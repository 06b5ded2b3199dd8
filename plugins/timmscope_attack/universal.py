"""Universal adversarial perturbations: one change that fools a model on most images."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    Goal,
    HookedModel,
    ImageBatches,
    Loss,
    UniversalAttack,
    image_rows,
    mean_over_draws,
)


class UniversalAdversarialPerturbation(UniversalAttack):
    """A universal perturbation fools a model on most images, also on those it was not fitted on.

    `v ← Π(v + α · steepest(∇ Σ min(loss(f(clip(x + v))), β)))` over small batches, from v = 0. Π is
    the projection into the ball, and `steepest` the sign (linf) or the gradient at unit length
    (l2). Without the limit β, a few images of large loss would decide every step. The step α falls
    linearly to a tenth, so that the last batches do not undo what the others have found. This is
    stochastic gradient ascent (Shafahi et al.) towards the goal of Moosavi-Dezfooli et al., who sum
    the smallest changes of single images instead: it takes a pass forward and back per image and
    epoch, where theirs takes dozens. Each step meets a random defence with a new draw. Cost:
    `epochs` forward and backward passes per image.

    Paper:
        - Moosavi-Dezfooli, Fawzi, Fawzi & Frossard, "Universal Adversarial Perturbations", CVPR
          2017, arXiv:1610.08401.
        - Shafahi, Najibi, Xu, Dickerson, Davis & Goldstein, "Universal Adversarial Training", AAAI
          2020, arXiv:1811.11304.

    Inherited parameters:
        epsilon: radius of the ball in pixel units [0, 1]; by default 10/255 for linf, 2000/255 (at
            224×224) for l2.

    Raises:
        ImageError: there are no images, or none can be read.
        ObjectiveError: the model has no such class, or no classes, or the objective does not fit.
        ParameterError: a parameter or `batch_size` is out of range, no image is left to fit on, the
            split needs labels, or an objective has no value.
        TechniqueError: the gradient is not finite.
    """

    norm: Literal["linf", "l2"] = "linf"
    """Norm of the perturbation: `linf`, its largest value, or `l2`, its Euclidean length."""
    epochs: int = Field(default=5, ge=1)
    """Passes over the images."""
    batch: int = Field(default=10, ge=1)
    """Images per step."""
    step_size: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Length of the first step in the norm, in pixel units; by default epsilon / 5."""
    loss: Loss = "cross-entropy"
    """Loss to raise; the gradients of `margin` and `dlr` do not vanish where the softmax
    saturates."""
    limit: float = Field(default=9.0, gt=0, allow_inf_nan=False)
    """Loss above which an image no longer counts; for an objective the value to reach does this."""

    def fit(self, model: HookedModel, batches: ImageBatches, goal: Goal) -> Tensor:
        """Climb the limited loss of one batch after the other."""
        found = torch.zeros(1, *batches.shape, device=model.device)
        ball = self.ball(found)
        first = ball.epsilon / 5 if self.step_size is None else self.step_size
        steps = self.epochs * -(-len(batches) // self.batch)
        done = 0
        for epoch in range(self.epochs):
            for images, rows in batches.epoch(epoch, self.batch):
                step = first * (1 - 0.9 * done / max(steps - 1, 1))
                compute = partial(self._gradient, model, images, goal.rows(rows), found)
                with image_rows(rows.tolist()):
                    (gradient,) = mean_over_draws(model, compute, step=done, draws=1)
                found = ball.project(found + step * ball.steepest(gradient))
                done += 1
        return found[0]

    def _gradient(
        self, model: HookedModel, images: Tensor, goal: Goal, found: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the gradient `(1, C, H, W)` of the limited loss in the perturbation."""
        most = self.limit if goal.objective is None else goal.value
        leaf = found.clone().requires_grad_()
        outputs = goal.outputs(model, (images + leaf).clamp(0, 1))
        loss = goal.loss(outputs, self.loss).clamp(max=most).sum()
        return torch.autograd.grad(loss, leaf)
