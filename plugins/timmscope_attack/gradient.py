"""Gradient ascent inside a ball, which FGSM and PGD share."""

from __future__ import annotations

from functools import partial

import torch
from pydantic import Field, model_validator
from torch import Tensor

from timmscope import AttackTechnique, Ball, HookedModel, Norm, mean_over_draws
from timmscope_attack.goals import Goal


class GradientAttack(AttackTechnique):
    """Base of attacks that raise a loss by gradient steps within `epsilon` of the image."""

    norm: Norm = "linf"
    """Norm of the change: `linf`, its largest value, or `l2`, its Euclidean length."""
    epsilon: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Radius in pixel units [0, 1]; by default 8/255 for linf, 3.0 (at 224×224) for l2."""
    draws: int | None = Field(default=None, ge=1)
    """Number of draws of a random defence over which each gradient is averaged; by default 10. A
    model without a random defence needs one."""

    @model_validator(mode="after")
    def _pixel_units(self) -> GradientAttack:
        if self.norm == "linf" and self.epsilon is not None and self.epsilon > 1:
            raise ValueError(
                f"epsilon is {self.epsilon:g}, but pixel values are in [0, 1]: "
                f"{self.epsilon:g}/255 is {self.epsilon / 255:.4g}"
            )
        return self

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
        stop_when_fooled: bool = False,
    ) -> Tensor:
        """`x ← clip(project(x + step_size · steepest(gradient)))`, `steps` times.

        Args:
            model: the model to fool.
            images: `(B, 3, H, W)`, the centres of the balls.
            start: `(n, 3, H, W)`, the images to start from.
            rows: `(n,)` int64, index in `images` of each row of `start`.
            goal: the goal for all B images.
            ball: the ball around each image.
            step_size: length of a step in the ball's norm.
            steps: number of steps.
            stop_when_fooled: stop changing an image at the first step at which it fools the model.
        """
        changed = start.clone()
        active = torch.arange(len(rows), device=rows.device)
        for step in self.track(range(steps), f"{self.title()} steps"):
            current = rows[active]
            compute = partial(loss_gradient, model, changed[active], goal.rows(current))
            with self.only(current):
                logits, gradient = mean_over_draws(model, compute, step=step, draws=self.draws)
            self.note_gradient(gradient, current)
            if stop_when_fooled:
                unbroken = ~goal.rows(current).fooled(logits)
                active, current, gradient = active[unbroken], current[unbroken], gradient[unbroken]
                if not len(active):
                    break
            changed[active] = ball.step(images[current], changed[active], gradient, step_size)
        return changed


def loss_gradient(model: HookedModel, images: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
    """Logits `(B, K)` and the gradient `(B, 3, H, W)` of the goal's loss in the images.

    It works under `no_grad` and `inference_mode`, and changes no `.grad`.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        logits = model(leaf)
        (gradient,) = torch.autograd.grad(goal.value(logits).sum(), leaf)
    return logits.detach(), gradient
