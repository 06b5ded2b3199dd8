"""Projected gradient descent."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor

from timmscope import HookedModel, image_generators
from timmscope_attack.balls import Ball
from timmscope_attack.goals import Goal, Loss
from timmscope_attack.gradient import GradientAttack


class PGD(GradientAttack):
    """PGD (Madry et al., ICLR 2018): many small steps, each projected back into the ball.

    `x ← clip(Π(x + α · steepest(∇ loss)))`, from a random point of the ball. It returns the last
    iterate, as other implementations do, unless `stop_when_fooled`. `steps` forwards and backwards
    an image; with several restarts one more forward each, to see which images remain.
    """

    steps: int = Field(default=40, ge=1)
    """Number of steps."""
    step_size: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Length of a step in the norm, pixel units; by default 2.5 · epsilon / steps."""
    loss: Loss = "cross-entropy"
    """What is climbed; margin does not vanish where the softmax saturates."""
    random_start: bool = True
    """Begin at a random point of the ball, the same for an image however a batch is split."""
    restarts: int = Field(default=1, ge=1)
    """Random starts; images already broken are not attacked again."""
    stop_when_fooled: bool = False
    """Stop at the first step that fools the model: cheaper, but with no margin to spare, so fewer
    results survive rounding to 8 bits."""

    @model_validator(mode="after")
    def _restarts_differ(self) -> PGD:
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts without random_start would all be the same: set it to true")
        return self

    def perturb(
        self, model: HookedModel, images: Tensor, labels: Tensor, targets: Tensor | None
    ) -> Tensor:
        """Climb from each start; keep what fools, else what came nearest."""
        ball = Ball.of(self.norm, self.epsilon, images)
        goal = Goal(labels=labels, targets=targets, loss=self.loss)
        generators = image_generators(len(images))
        best = images.clone()
        nearest = torch.full((len(images),), -torch.inf, device=images.device)
        rows = torch.arange(len(images), device=images.device)
        for _ in range(self.restarts):
            reached = self._climb_once(model, images, rows, goal, ball, generators)
            if self.restarts == 1:
                return reached
            with self.only(rows), torch.no_grad():
                logits = model(reached)
            fooled = goal.rows(rows).fooled(logits)
            value = goal.rows(rows).value(logits).float()
            better = fooled | (value > nearest[rows])
            best[rows[better]] = reached[better]
            nearest[rows] = torch.maximum(nearest[rows], value)
            rows = rows[~fooled]
            if not len(rows):
                break
        return best

    def _climb_once(
        self,
        model: HookedModel,
        images: Tensor,
        rows: Tensor,
        goal: Goal,
        ball: Ball,
        generators: list[torch.Generator],
    ) -> Tensor:
        start = images[rows]
        if self.random_start:
            start = (start + ball.sample(start, [generators[row] for row in rows.tolist()])).clamp(
                0, 1
            )
        return self.climb(
            model,
            images,
            start,
            rows,
            goal,
            ball,
            step_size=2.5 * ball.epsilon / self.steps if self.step_size is None else self.step_size,
            steps=self.steps,
            stop_when_fooled=self.stop_when_fooled,
        )
