"""What universal attacks along gradients share: ascent over batches of images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    Goal,
    HookedModel,
    ImageBatches,
    Loss,
    ModelName,
    UniversalAttack,
    image_rows,
    mean_over_draws,
)
from timmscope_attack.surrogate import open_surrogate


class UniversalAscent(UniversalAttack):
    """Base of universal attacks that climb the loss of one batch after the other."""

    epochs: int = Field(default=5, ge=1)
    """Passes over the images."""
    batch: int = Field(default=10, ge=1)
    """Images per step."""
    loss: Loss = "cross-entropy"
    """Loss to raise; the gradients of `margin` and `dlr` do not vanish where the softmax
    saturates."""
    limit: float = Field(default=9.0, gt=0, allow_inf_nan=False)
    """Loss above which an image no longer counts; for an objective the value to reach does this."""
    surrogate: ModelName | None = None
    """Model whose gradient is followed; by default the attacked model itself."""

    def ascend(
        self,
        model: HookedModel,
        batches: ImageBatches,
        goal: Goal,
        start: Tensor,
        *,
        step_size: float,
        changed: Callable[[Tensor, Tensor], Tensor],
        move: Callable[[Tensor, Tensor, float], Tensor],
    ) -> Tensor:
        """Climb the limited loss of one batch after the other.

        The step falls linearly to a tenth, so that the last batches do not undo what the others
        have found.

        Args:
            model: the model to fool.
            batches: the images.
            goal: the goal of all of them.
            start: the first perturbation.
            step_size: length of the first step.
            changed: returns images with a perturbation; differentiable.
            move: returns a perturbation after a step along a gradient, of that length.
        """
        source, resized = open_surrogate(self, model, self.surrogate, batches.shape)
        most = self.limit if goal.objective is None else goal.value
        steps = self.epochs * -(-len(batches) // self.batch)
        found, done = start, 0

        def gradient(images: Tensor, own: Goal) -> tuple[Tensor, ...]:
            leaf = found.clone().requires_grad_()
            outputs = own.outputs(source, resized(changed(images, leaf)))
            return torch.autograd.grad(own.loss(outputs, self.loss).clamp(max=most).sum(), leaf)

        for epoch in range(self.epochs):
            for images, rows in batches.epoch(epoch, self.batch):
                size = step_size * (1 - 0.9 * done / max(steps - 1, 1))
                compute = partial(gradient, images, goal.rows(rows))
                with image_rows(rows.tolist()):
                    (slope,) = mean_over_draws(source, compute, step=done, draws=1)
                found = move(found, slope, size)
                done += 1
        return found
