"""What attacks along gradients share: outputs and gradients, and ascent inside a ball."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from timmscope import AttackTechnique, Ball, Goal, HookedModel, Loss, mean_over_draws


class Gradients(AttackTechnique):
    """Base of attacks that follow gradients."""

    draws: int | None = Field(default=None, ge=1)
    """Number of draws of a random defence over which each gradient is averaged; by default 10. A
    model without a random defence needs one."""

    def why_zero(self) -> str:
        """The softmax is saturated, or the model has no slope at the image."""
        if getattr(self, "loss", "cross-entropy") == "cross-entropy":
            return (
                "a confident softmax has no slope; try pgd with loss='margin', whose gradient "
                "does not vanish there"
            )
        return (
            "the model itself has no slope there; try more restarts or a larger epsilon, or an "
            "attack that needs no gradient"
        )

    def outputs_and_gradient(
        self,
        model: HookedModel,
        changed: Tensor,
        rows: Tensor,
        goal: Goal,
        *,
        step: int,
        loss: Loss = "cross-entropy",
    ) -> tuple[Tensor, Tensor]:
        """Run changed images forward and back, and note gradients that are zero.

        Args:
            model: the model to fool.
            changed: `(n, C, H, W)`, the images where they are now.
            rows: `(n,)` int64, the rows of `perturb`'s batch that they belong to.
            goal: the goal for the whole batch.
            step: number of the step, from 0: a random defence draws anew at each.
            loss: the loss to raise.

        Returns:
            What the goal depends on, as `goal.outputs`, and the gradient `(n, C, H, W)` of the
            loss, each averaged over the draws of a random defence.
        """
        compute = partial(goal.rows(rows).gradient, model, changed, loss)
        with self.only(rows):
            outputs, gradient = mean_over_draws(model, compute, step=step, draws=self.draws)
        self.note_gradient(gradient, rows)
        return outputs, gradient


class GradientAttack(Gradients):
    """Base of attacks that raise a loss by gradient steps within `epsilon` of the image."""

    norm: Literal["linf", "l2", "l1"] = "linf"
    """Norm of the change: `linf`, its largest value, `l2`, its Euclidean length, or `l1`, the sum
    of its magnitudes."""

    def climb(
        self,
        model: HookedModel,
        images: Tensor,
        start: Tensor,
        rows: Tensor,
        goal: Goal,
        ball: Ball,
        *,
        step_size: float,
        steps: int,
        loss: Loss = "cross-entropy",
        stop_when_fooled: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """`x ← clip(project(x + step_size · direction(gradient)))`, `steps` times.

        In L1 the projection is the exact one onto ball and box.

        Args:
            model: the model to fool.
            images: `(B, C, H, W)`, the centres of the balls.
            start: `(n, C, H, W)`, the images to start from.
            rows: `(n,)` int64, index in `images` of each row of `start`.
            goal: the goal for all B images.
            ball: the ball around each image.
            step_size: length of a step in the ball's norm.
            steps: number of steps.
            loss: the loss to raise.
            stop_when_fooled: stop changing an image at the first step at which it fools the model.

        Returns:
            The changed images, and after how many steps each first reached the goal, `(n,)` int64:
            -1 if it did not before the last step, whose outcome is not computed.
        """
        changed = start.clone()
        first = torch.full_like(rows, -1)
        active = torch.arange(len(rows), device=rows.device)
        for step in self.track(range(steps), f"{self.title()} steps"):
            current = rows[active]
            outputs, gradient = self.outputs_and_gradient(
                model, changed[active], current, goal, step=step, loss=loss
            )
            reached = goal.rows(current).reached(outputs)
            first[active] = torch.where(reached & (first[active] < 0), step, first[active])
            if stop_when_fooled:
                unbroken = ~reached
                active, current, gradient = active[unbroken], current[unbroken], gradient[unbroken]
                if not len(active):
                    break
            changed[active] = ball.step(images[current], changed[active], gradient, step_size)
        return changed, first
