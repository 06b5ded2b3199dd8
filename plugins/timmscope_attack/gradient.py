"""Gradient ascent inside a ball: what FGSM and PGD share."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor

from timmscope import AttackTechnique, HookedModel
from timmscope_attack.balls import Ball, Norm
from timmscope_attack.goals import Goal


class GradientAttack(AttackTechnique):
    """Base of attacks that climb a loss step by step within `epsilon` of the image."""

    norm: Norm = "linf"
    """How the change is measured: its largest value, or its Euclidean length."""
    epsilon: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Radius in pixel units [0, 1]; by default 8/255 for linf, 3.0 (at 224×224) for l2."""

    @model_validator(mode="after")
    def _pixel_units(self) -> GradientAttack:
        if self.norm == "linf" and self.epsilon is not None and self.epsilon > 1:
            raise ValueError(
                f"epsilon is {self.epsilon:g}, pixel values only span 0 to 1: "
                f"{self.epsilon:g}/255 is {self.epsilon / 255:.4g}"
            )
        return self

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

        Projection comes before clipping to [0, 1], as in foolbox; the clipped change is still in
        the ball, because the image is in the box.

        Args:
            model: to be fooled.
            images: `(B, 3, H, W)`, centres of the balls.
            start: `(n, 3, H, W)`, where to begin.
            rows: `(n,)` int64, which images `start` belongs to.
            goal: of all B images.
            ball: around each image.
            step_size: in the ball's norm.
            steps: number of steps.
            stop_when_fooled: leave an image alone from the first step at which it fools the model.
        """
        changed = start.clone()
        going = torch.arange(len(rows), device=rows.device)
        for _ in self.track(range(steps), f"{self.title()} steps"):
            here = rows[going]
            with self.only(here):
                logits, gradient = loss_gradient(model, changed[going], goal.rows(here))
            if stop_when_fooled:
                open_ = ~goal.rows(here).fooled(logits)
                going, here, gradient = going[open_], here[open_], gradient[open_]
                if not len(going):
                    break
            origin = images[here]
            moved = changed[going] + step_size * ball.steepest(gradient)
            moved = origin + ball.project(moved - origin)
            changed[going] = moved.clamp(0, 1)
        return changed


def loss_gradient(model: HookedModel, images: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
    """Logits `(B, K)` and the gradient of the goal's value in the images `(B, 3, H, W)`.

    Works under `no_grad` and `inference_mode`; touches no `.grad`.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        logits = model(leaf)
        (gradient,) = torch.autograd.grad(goal.value(logits).sum(), leaf)
    return logits.detach(), gradient
