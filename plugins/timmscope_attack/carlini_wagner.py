"""Carlini and Wagner's attack: the smallest change by descent, with a search for its weight."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from timmscope import Goal, HookedModel, NearestFound
from timmscope_attack.minimum import MinimumNormAttack

_EDGE = 0.999999
_SMALLEST_BOUND = 1 / 256
_MOST_CONSTANT = 20.0
_ENOUGH = 1e-4


class CarliniWagner(MinimumNormAttack):
    """Carlini and Wagner's attack minimises the size of the change and a hinge of the margin.

    L2: `min over w of ‖x' − x‖² + c · max(κ − margin(x'), 0)` with `x' = (tanh w + 1) / 2`, by Adam
    from w = atanh(2x − 1); `searches` runs find the smallest c for which an image fools the model,
    for each image on its own: ten times c after a failure, halfway after a success. A run of an
    image ends early when its loss has not fallen by 0.01 % in a tenth of the steps. L∞:
    `min of Σ max(|x' − x| − τ, 0) + c · max(κ − margin(x'), 0)`, where c doubles until the image
    fools the model, and then τ becomes 0.9 times the largest change, down to 1/256. κ asks for a
    margin, so that the image fools other models too. Cost: at most `searches` · `steps` forward and
    backward passes per image for L2, and some dozens of runs of `steps` for L∞; images leave the
    batch as they finish. `ddn` finds smaller L2 changes in far fewer passes.

    Paper:
        Carlini & Wagner, "Towards Evaluating the Robustness of Neural Networks", IEEE Symposium on
        Security and Privacy 2017, arXiv:1608.04644.

    Inherited parameters:
        epsilon: largest change that counts as a success, in pixel units [0, 1]; by default any.
        draws: number of draws of a random defence over which each gradient is averaged; by default
            10. A model without a random defence needs one.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: a label or target is no class of the model, or the model has no classes.
        ParameterError: a parameter or `batch_size` is out of range, or a target equals its label.
        TechniqueError: the gradient is not finite.
        UnsupportedModel: the model has a defence without a gradient.
    """

    norm: Literal["l2", "linf"] = "l2"
    """Norm of the change: `l2`, its Euclidean length, or `linf`, its largest value."""
    steps: int = Field(default=200, ge=1)
    """Largest number of steps of a run; the paper takes 10,000 for l2 and 1,000 for linf."""
    searches: int = Field(default=9, ge=1)
    """Number of runs that search for the constant c, for l2."""
    step_size: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Learning rate of Adam; by default 0.01 for l2 and 0.005 for linf, as in the paper. A step
    changes every value, so a boundary near a large photograph needs less, such as 0.0005."""
    confidence: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Margin κ of the logits that an image must have to count."""
    first_constant: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """First constant c; by default 0.001 for l2 and 0.00001 for linf."""

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        """Return the nearest image of all runs that fools the model."""
        nearest = NearestFound(images, self.norm)
        if self.norm == "l2":
            self._search(model, images, goal, nearest)
        else:
            self._shrink(model, images, goal, nearest)
        return nearest.images

    def _search(
        self, model: HookedModel, images: Tensor, goal: Goal, nearest: NearestFound
    ) -> None:
        """Run once for each constant of the search, which is of each image on its own."""
        constant = self._first(images, 1e-3)
        lowest, highest = torch.zeros_like(constant), torch.full_like(constant, torch.inf)
        for search in self.track(range(self.searches), f"{self.title()} searches"):
            if search == self.searches - 1 and self.searches >= 10:
                constant = torch.where(highest.isfinite(), highest, constant)
            fooled = self._descend(model, images, goal, nearest, constant, search)
            highest = torch.where(fooled, highest.minimum(constant), highest)
            lowest = torch.where(fooled, lowest, lowest.maximum(constant))
            halfway = (lowest + highest) / 2
            constant = torch.where(highest.isfinite(), halfway, constant * 10)

    def _descend(
        self,
        model: HookedModel,
        images: Tensor,
        goal: Goal,
        nearest: NearestFound,
        constant: Tensor,
        search: int,
    ) -> Tensor:
        """Descend from the images, and return which of them fooled the model, `(B,)`."""
        run = _Run.at(images, torch.atanh((2 * images - 1) * _EDGE))
        start = (run.place.tanh() + 1) / 2
        fooled = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        before = torch.full_like(constant, torch.inf)
        check = max(1, self.steps // 10)
        for step in range(self.steps):
            curve = run.place.tanh()
            changed = (curve + 1) / 2
            short, slope, reached = self._hinge(
                model, changed, run.rows, goal, search * self.steps + step
            )
            nearest.offer(run.rows, changed, reached)
            fooled[run.rows[reached]] = True
            away = changed - start[run.rows]
            weight = constant[run.rows]
            loss = (away**2).flatten(1).sum(1) + weight * short
            slope = (2 * away + weight.view(-1, 1, 1, 1) * slope) * (1 - curve**2) / 2
            run.step(slope, 0.01 if self.step_size is None else self.step_size)
            if step % check == 0:
                going = loss <= 0.9999 * before[run.rows]
                before[run.rows] = loss
                run = run.keep(going)
                if not len(run.rows):
                    break
        return fooled

    def _shrink(
        self, model: HookedModel, images: Tensor, goal: Goal, nearest: NearestFound
    ) -> None:
        """Run each image again and again, with a smaller bound on every value of its change.

        The images of a batch are in different runs at the same time: each begins its next run when
        the last one ends.
        """
        run = _Run.at(images, images.clone())
        constant, bound = self._first(images, 1e-5), torch.ones(len(images)).to(images)
        size = 0.005 if self.step_size is None else self.step_size
        step = 0
        while len(run.rows):
            changed = run.place
            short, slope, reached = self._hinge(model, changed, run.rows, goal, step)
            step += 1
            nearest.offer(run.rows, changed, reached)
            away = changed - images[run.rows]
            tau, weight = bound[run.rows], constant[run.rows]
            beyond = away.abs() - tau.view(-1, 1, 1, 1)
            loss = beyond.clamp(min=0).flatten(1).sum(1) + weight * short
            solved = reached & (loss <= _ENOUGH * weight)
            over = solved | (run.steps >= self.steps)
            won = over & reached
            largest = away.abs().flatten(1).amax(1)
            bound[run.rows] = torch.where(won, tau.minimum(largest) * 0.9, tau)
            constant[run.rows] = torch.where(over & ~won, weight * 2, weight)
            slope = away.sign() * (beyond > 0) + weight.view(-1, 1, 1, 1) * slope
            run.step(slope, size)
            run.place = run.place.clamp(0, 1)
            run.restart(over)
            finished = (bound[run.rows] < _SMALLEST_BOUND) | (constant[run.rows] > _MOST_CONSTANT)
            run = run.keep(~(over & finished))

    def _hinge(
        self, model: HookedModel, changed: Tensor, rows: Tensor, goal: Goal, step: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return `max(κ − margin, 0)`, its gradient, and whether the margin is reached."""
        outputs, gradient = self.outputs_and_gradient(
            model, changed, rows, goal, step=step, loss="margin"
        )
        own = goal.rows(rows)
        short = self.confidence - own.margin(outputs)
        reached = own.reached(outputs) & (short <= 0)
        gradient = torch.where((short > 0).view(-1, 1, 1, 1), -gradient, 0.0)
        return short.clamp(min=0).to(changed), gradient, reached

    def _first(self, images: Tensor, default: float) -> Tensor:
        first = default if self.first_constant is None else self.first_constant
        return torch.full((len(images),), first).to(images)


@dataclass
class _Run:
    """Adam for the images that are still in a run, each with a number of steps of its own.

    Attributes:
        rows: `(n,)` int64, rows of the batch.
        place: `(n, C, H, W)`, what Adam changes.
        steps: `(n,)` number of steps so far.
        mean: `(n, C, H, W)` mean of gradients.
        variance: `(n, C, H, W)` mean of their squares.
    """

    rows: Tensor
    place: Tensor
    steps: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def at(cls, images: Tensor, place: Tensor) -> _Run:
        """Begin with all images, at the given place."""
        rows = torch.arange(len(images), device=images.device)
        zero = torch.zeros_like(images)
        return cls(rows, place, torch.zeros_like(rows), zero, zero.clone())

    def step(self, gradient: Tensor, size: float) -> None:
        """Take a step of Adam down the gradient (Kingma & Ba, ICLR 2015)."""
        self.steps = self.steps + 1
        count = self.steps.view(-1, 1, 1, 1).double()
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.variance = 0.999 * self.variance + 0.001 * gradient**2
        mean = self.mean / (1 - 0.9**count).to(self.mean)
        variance = self.variance / (1 - 0.999**count).to(self.mean)
        self.place = self.place - size * mean / (variance.sqrt() + 1e-8)

    def restart(self, which: Tensor) -> None:
        """Begin the next run of some images from where they are."""
        kept = (~which).view(-1, 1, 1, 1)
        self.steps, self.mean = self.steps * ~which, self.mean * kept
        self.variance = self.variance * kept

    def keep(self, which: Tensor) -> _Run:
        """Return the run of some of the images."""
        if bool(which.all()):
            return self
        return _Run(*(getattr(self, each.name)[which] for each in fields(self)))
