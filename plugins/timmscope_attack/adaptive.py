"""The ascent of APGD: steps with momentum whose size is halved where progress stops."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from timmscope import Ball, Goal, HookedModel, Loss
from timmscope_attack.gradient import GradientAttack
from timmscope_attack.outputs import mean_outputs

_L1_SHARE = 0.2
"""In L1: share of the values that the first steps change."""
_INCREASES = 0.75
"""Share of the steps since the last check that must raise the loss, or the step is halved."""
_MOMENTUM = 0.75
"""Weight of the step against that of the one before."""
_SHRINKS = 0.95
"""In L1: number of changed values, relative to the last check, below which the step is reset."""
_DIVISOR, _SMALLEST = 1.5, 0.1
"""In L1: divisor of the step and of the share of values; smallest step in units of epsilon."""


@dataclass
class Climbed:
    """What an ascent found.

    Attributes:
        images: `(n, C, H, W)`: the last image that reached the goal, else that of the largest loss.
        best: `(n, C, H, W)`: the image of the largest loss, unless the ascent stopped before.
        reached: `(n,)` whether the goal was reached.
        loss: `(n,)` the largest loss.
        first: `(n,)` int64, after how many steps the goal was first reached; -1 if it was not.
    """

    images: Tensor
    best: Tensor
    reached: Tensor
    loss: Tensor
    first: Tensor


@dataclass
class _State:
    """The images that are still climbing, a row each; `places` are their rows in the ascent."""

    places: Tensor
    centre: Tensor
    now: Tensor
    before: Tensor
    gradient: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    last_loss: Tensor
    checked_loss: Tensor
    increases: Tensor
    was_halved: Tensor
    size: Tensor
    changed: Tensor
    share: Tensor

    @classmethod
    def at(cls, centre: Tensor, start: Tensor, ball: Ball, share: Tensor) -> _State:
        """Return the state at the start."""
        count = len(start)
        low = start.new_full((count,), -torch.inf)
        size = ball.epsilon * (1 if ball.norm == "l1" else 2)
        return cls(
            places=torch.arange(count, device=start.device),
            centre=centre,
            now=start,
            before=start,
            gradient=torch.zeros_like(start),
            best=start.clone(),
            best_gradient=torch.zeros_like(start),
            best_loss=low,
            last_loss=-low,
            checked_loss=low,
            increases=torch.zeros_like(low),
            was_halved=torch.ones_like(low, dtype=torch.bool),
            size=start.new_full((count, 1, 1, 1), size),
            changed=_changed(start - centre),
            share=share,
        )

    def keep(self, which: Tensor) -> None:
        """Keep some of the images, `which` `(n,)` bool."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name)[which])

    def see(self, loss: Tensor, gradient: Tensor) -> None:
        """Note the loss and the gradient of the images as they are."""
        self.gradient = gradient
        self.increases = self.increases + (loss > self.last_loss)
        self.last_loss = loss
        better = loss > self.best_loss
        where = better.view(-1, 1, 1, 1)
        self.best = torch.where(where, self.now, self.best)
        self.best_gradient = torch.where(where, gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)

    def halve(self, steps: int) -> None:
        """Halve the step of images that make no progress, and restart them from their best."""
        few = self.increases <= _INCREASES * steps
        still = ~self.was_halved & (self.checked_loss >= self.best_loss)
        self.was_halved = few | still
        self.size = torch.where(self.was_halved.view(-1, 1, 1, 1), self.size / 2, self.size)
        self._restart(self.was_halved)

    def adapt(self, epsilon: float) -> None:
        """In L1: reset the step where the change becomes sparser, and make it smaller elsewhere."""
        changed = _changed(self.best - self.centre)
        sparser = changed < _SHRINKS * self.changed
        smaller = (self.size / _DIVISOR).clamp(min=_SMALLEST * epsilon)
        self.size = torch.where(sparser.view(-1, 1, 1, 1), epsilon, smaller)
        self.share = changed / self.best[0].numel() / _DIVISOR
        self.changed = changed
        self._restart(sparser)

    def _restart(self, which: Tensor) -> None:
        where = which.view(-1, 1, 1, 1)
        self.now = torch.where(where, self.best, self.now)
        self.gradient = torch.where(where, self.best_gradient, self.gradient)
        self.checked_loss = self.best_loss
        self.increases = torch.zeros_like(self.increases)

    def move(self, ball: Ball, first: bool) -> None:
        """Take a step; the first one has no momentum."""
        ahead = self.now + self.size * ball.direction(self.gradient, self.share)
        ahead = ball.inside(self.centre, ahead)
        if ball.norm != "l1" and not first:
            step, last = ahead - self.now, self.now - self.before
            moved = self.now + _MOMENTUM * step + (1 - _MOMENTUM) * last
            ahead = ball.inside(self.centre, moved)
        self.before, self.now = self.now, ahead


class AdaptiveAttack(GradientAttack):
    """Base of attacks that climb with adaptive steps."""

    def adaptive_climb(
        self,
        model: HookedModel,
        images: Tensor,
        start: Tensor,
        rows: Tensor,
        goal: Goal,
        aim: Goal,
        ball: Ball,
        *,
        steps: int,
        loss: Loss,
        share: Tensor | None = None,
        stop_when_fooled: bool = False,
    ) -> Climbed:
        """Raise the loss of `aim` inside the ball, and keep what reaches `goal`.

        Args:
            model: the model to fool.
            images: `(n, C, H, W)`, the centres of the balls.
            start: `(n, C, H, W)`, the images to start from.
            rows: `(n,)` int64, the rows of `perturb`'s batch that they are.
            goal: what to reach, for the whole batch.
            aim: whose loss to raise: the goal, or one of its target classes.
            ball: the ball around each image.
            steps: number of steps.
            loss: the loss to raise.
            share: in L1, the share of the values that the first steps change, `(n,)`; by default a
                fifth.
            stop_when_fooled: stop changing an image at the first step at which it reaches the goal.
        """
        shares = share if share is not None else start.new_full((len(start),), _L1_SHARE)
        state = _State.at(images, start, ball, shares)
        found = Climbed(
            images=start.clone(),
            best=start.clone(),
            reached=torch.zeros_like(rows, dtype=torch.bool),
            loss=start.new_full((len(start),), -torch.inf),
            first=torch.full_like(rows, -1),
        )
        checks = _checks(steps, ball.norm == "l1")
        for step in self.track(range(steps + 1), f"{self.title()} steps"):
            if not len(state.places):
                continue
            places = state.places
            current = rows[places]
            if step < steps:
                outputs, gradient = self.outputs_and_gradient(
                    model, state.now, current, aim, step=step, loss=loss
                )
            else:
                with self.only(current):
                    outputs = mean_outputs(
                        model, state.now, aim.rows(current), step=step, draws=self.draws
                    )
                gradient = state.gradient  # of the step before; no further step needs it
            value = aim.rows(current).loss(outputs, loss).to(state.best_loss)
            state.see(value, gradient)
            reached = goal.rows(current).reached(outputs)
            found.images[places[reached]] = state.now[reached]
            found.reached[places] |= reached
            new = reached & (found.first[places] < 0)
            found.first[places[new]] = step
            found.loss[places] = state.best_loss
            if stop_when_fooled:
                state.keep(~reached)
            if step in checks and step < steps:
                if ball.norm == "l1":
                    state.adapt(ball.epsilon)
                else:
                    state.halve(checks[step])
            if step < steps:
                state.move(ball, first=step == 0)
        found.best[state.places] = state.best
        found.images[~found.reached] = found.best[~found.reached]
        return found


def _checks(steps: int, l1: bool) -> dict[int, int]:
    """Return after which steps progress is checked, with the steps since the check before.

    The first period is 0.22 of the steps, each later one 0.03 shorter, down to 0.06; in L1 all are
    0.04.
    """
    period = max(int((0.04 if l1 else 0.22) * steps), 1)
    shorter, least = max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
    found = {}
    at = period
    while at < steps:
        found[at] = period
        if not l1:
            period = max(period - shorter, least)
        at += period
    return found


def _changed(change: Tensor) -> Tensor:
    """Return how many values change, `(n,)`."""
    return (change != 0).flatten(1).sum(1).to(change)
