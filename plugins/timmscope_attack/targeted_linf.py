"""Ascent of a score minus a price on the largest change: how much change buys how much score."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from timmscope import Goal, HookedModel, Loss, NearestFound
from timmscope_attack.minimum import MinimumNormAttack

PENALTIES = (1e4, 1e3, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)


class TargetedLinfObjective(MinimumNormAttack):
    """The targeted L∞ objective weighs the score of a class against the largest change of a value.

    `max over δ of S(x + δ) − λ · ‖δ‖∞`, with x + δ in [0, 1], by proximal ascent:
    `δ ← prox(δ + η · ∇S)`, where prox solves `min over d of ‖d − v‖² / 2 + η·λ·‖d‖∞` inside the box
    exactly. A subgradient of the norm would move one pixel at a time. The step η of each image
    halves where the objective falls, and grows by a fifth where it rises. The penalties λ are taken
    in falling order, each from the result of the one before, so that one call gives a Pareto curve:
    the notes have the change and the score at each λ. The result is the smallest change that
    reaches the goal. On a linear model with weights w there is no change at all while
    ‖w‖₁ < λ. Cost: `steps` forward and backward passes per image and penalty, fewer where no
    further step is possible.

    Paper:
        - Szegedy, Zaremba, Sutskever, Bruna, Erhan, Goodfellow & Fergus, "Intriguing Properties of
          Neural Networks", ICLR 2014, arXiv:1312.6199.
        - Parikh & Boyd, "Proximal Algorithms", Foundations and Trends in Optimization 2014,
          doi:10.1561/2400000003.

    Inherited parameters:
        epsilon: largest change of a value that counts as a success, in pixel units [0, 1]; by
            default any.
        draws: number of draws of a random defence over which each gradient is averaged; by default
            10. A model without a random defence needs one.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: a label or target is no class of the model, or the model has no classes.
        ParameterError: a parameter or `batch_size` is out of range, or a target equals its label.
        TechniqueError: the gradient is not finite.
        UnsupportedModel: the model has a defence without a gradient.
    """

    norm: Literal["linf"] = "linf"
    """Norm of the change: `linf`, its largest value."""
    loss: Loss = "logit"
    """Score S: `logit` of the target, its log-probability (`cross-entropy`), or its `margin`;
    without a target minus that of the label. For an objective it is the value."""
    penalties: tuple[float, ...] = PENALTIES
    """Penalties λ per unit of the largest change; they are taken in falling order."""
    steps: int = Field(default=20, ge=1)
    """Largest number of steps per penalty."""

    @field_validator("penalties")
    @classmethod
    def _falling(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or not all(0 < each < float("inf") for each in value):
            raise ValueError(f"penalties are {value}: expected finite numbers above 0")
        return tuple(sorted(set(value), reverse=True))

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        """Return the smallest change of the whole curve that reaches the goal."""
        nearest = NearestFound(images, self.norm)
        ascent = _Ascent(self, model, images, goal, nearest)
        for penalty in self.track(self.penalties, f"{self.title()} penalties"):
            ascent.climb(penalty, self.steps)
            self.note(f"linf at λ {penalty:g}", ascent.largest())
            self.note(f"score at λ {penalty:g}", ascent.score)
        return nearest.images


class _Ascent:
    """The images of a batch on their way along the curve.

    Attributes:
        change: `(B, C, H, W)`, the best change at the last penalty.
        score: `(B,)` its score.
    """

    def __init__(
        self,
        attack: TargetedLinfObjective,
        model: HookedModel,
        images: Tensor,
        goal: Goal,
        nearest: NearestFound,
    ) -> None:
        self._attack, self._model, self._images = attack, model, images
        self._goal, self._nearest, self._calls = goal, nearest, 0
        self.change = torch.zeros_like(images)
        rows = torch.arange(len(images), device=images.device)
        self.score, self._gradient = self._evaluate(self.change, rows)
        sums = self._gradient.abs().flatten(1).sum(1)
        self._size = (1 / sums.clamp(min=1e-12)).view(-1, 1, 1, 1)

    def largest(self) -> Tensor:
        """Return the largest change of each image, `(B,)`."""
        return self.change.abs().flatten(1).amax(1)

    def climb(self, penalty: float, steps: int) -> None:
        """Take steps at one penalty; images that stand still leave the batch."""
        rows = torch.arange(len(self._images), device=self._images.device)
        for _ in range(steps):
            change, size = self.change[rows], self._size[rows]
            moved = proximal(
                change + size * self._gradient[rows], self._images[rows], penalty * size
            )
            going = (moved != change).flatten(1).any(1)
            rows, moved, change = rows[going], moved[going], change[going]
            if not len(rows):
                break
            score, gradient = self._evaluate(moved, rows)
            value = score - penalty * moved.abs().flatten(1).amax(1)
            before = self.score[rows] - penalty * change.abs().flatten(1).amax(1)
            rises = value >= before
            factor = torch.where(rises, 1.2, 0.5).to(moved)
            self._size[rows] *= factor.view(-1, 1, 1, 1)
            better = rows[rises]
            self.change[better], self.score[better] = moved[rises], score[rises]
            self._gradient[better] = gradient[rises]

    def _evaluate(self, change: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return score `(n,)` and gradient, and offer the changed images as results."""
        changed = (self._images[rows] + change).clamp(0, 1)
        attack, goal = self._attack, self._goal.rows(rows)
        outputs, gradient = attack.outputs_and_gradient(
            self._model, changed, rows, self._goal, step=self._calls, loss=attack.loss
        )
        self._calls += 1
        self._nearest.offer(rows, changed, goal.reached(outputs))
        return goal.loss(outputs, attack.loss).to(changed), gradient


def proximal(values: Tensor, images: Tensor, prices: Tensor) -> Tensor:
    """Return `argmin over d of ‖d − v‖² / 2 + price · ‖d‖∞` with x + d in [0, 1], `(B, C, H, W)`.

    The minimum is v within ±t and the box, where t solves `Σ max(|v_i| − t, 0) = price` over the
    values that are not at the edge of the box at t, or is 0 if there is no such t. It is found by
    halving an interval, in double precision.

    Args:
        values: v, `(B, C, H, W)`.
        images: x, `(B, C, H, W)` in [0, 1].
        prices: `(B, 1, 1, 1)`.
    """
    room = torch.where(values > 0, 1 - images, images).double().flatten(1)
    sizes = values.double().abs().flatten(1)
    wanted = prices.double().flatten(1)
    low = torch.zeros_like(wanted)
    high = torch.minimum(sizes, room).amax(1, keepdim=True)
    for _ in range(60):
        middle = (low + high) / 2
        pull = ((sizes - middle).clamp(min=0) * (middle < room)).sum(1, keepdim=True)
        low, high = (
            torch.where(pull > wanted, middle, low),
            torch.where(pull > wanted, high, middle),
        )
    limit = torch.where(low > 0, high, low).to(values).view(-1, 1, 1, 1)
    inside = torch.minimum(values.abs(), limit) * values.sign()
    return torch.minimum(torch.maximum(inside, -images), 1 - images)
