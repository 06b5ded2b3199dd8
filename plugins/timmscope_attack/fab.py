"""FAB: steps to the nearest linearised decision boundary, kept close to the original image."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    Goal,
    HookedModel,
    NearestFound,
    image_generators,
    mean_over_draws,
    noise_like,
    step_to_plane,
)
from timmscope_attack.boundaries import boundaries, likely_others, nearest_plane
from timmscope_attack.few_classes import class_count
from timmscope_attack.minimum import TINY, MinimumNormAttack
from timmscope_attack.outputs import mean_outputs

_SHORTEST = 1e-8


class FAB(MinimumNormAttack):
    """FAB finds a small change by projecting onto linearised decision boundaries within [0, 1].

    At each step, the boundary to a class t is taken as the plane `z_t − z_y + ⟨w, d⟩ = 0` with w
    the gradient of `z_t − z_y`, and the nearest of these planes counts. With d₁ the smallest change
    from x to the plane and d₂ that from the original x₀, both within [0, 1], the step is
    `x ← clip((1 − α)(x + η d₁) + α (x₀ + η d₂))`, with `α = min(‖d₁‖ / (‖d₁‖ + ‖d₂‖), α_max)`. An
    image that is adversarial is kept if it is the nearest so far, and x goes back to
    `(1 − β) x₀ + β x`. For targets or an objective there is one boundary. Cost per step: two
    forward passes, and a backward pass for each boundary.

    Paper:
        Croce & Hein, "Minimally Distorted Adversarial Examples with a Fast Adaptive Boundary
        Attack", ICML 2020, arXiv:1907.02044.

    Inherited parameters:
        epsilon: largest change that counts as a success, in pixel units [0, 1]; by default any.
        draws: number of draws of a random defence over which logits and gradients are averaged; by
            default 10. A model without a random defence needs one.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: a label or target is no class of the model, or the model has no classes.
        ParameterError: a parameter or `batch_size` is out of range, or a target equals its label.
        TechniqueError: the gradient is not finite.
        UnsupportedModel: the model has a defence without a gradient.
    """

    norm: Literal["linf", "l2", "l1"] = "linf"
    """Norm of the change: `linf`, its largest value, `l2`, its Euclidean length, or `l1`, the sum
    of its magnitudes."""
    steps: int = Field(default=100, ge=1)
    """Number of steps."""
    restarts: int = Field(default=1, ge=1)
    """Number of starts: the first is the image itself, others are random."""
    target_classes: int = Field(default=9, ge=1)
    """Largest number of classes, the most likely others, whose boundaries are looked for."""
    one_by_one: bool = False
    """Go for one class after the other, as in AutoAttack, instead of the nearest at each step: more
    steps, with a backward pass each."""
    alpha_max: float = Field(default=0.1, ge=0, le=1)
    """Largest weight of the step from the original image."""
    overshoot: float = Field(default=1.05, ge=1, allow_inf_nan=False)
    """Factor η that makes a step end beyond the plane."""
    backward: float = Field(default=0.9, gt=0, lt=1)
    """Factor β by which an adversarial image goes back towards the original."""
    stop_within_epsilon: bool = False
    """Stop at the first change within epsilon: cheaper, but not the smallest."""

    def why_zero(self) -> str:
        """The model has no slope at the image."""
        return (
            "the model itself has no slope there; try more restarts, or an attack that needs no "
            "gradient, such as square"
        )

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        """Look for the nearest boundary from each start."""
        nearest = NearestFound(images, self.norm)
        first: list[int | None] = [None] * len(images)
        generators = image_generators(len(images))
        done = 0
        for classes in self._classes(model, images, goal):
            for restart in range(self.restarts):
                rows = self._unsolved(nearest)
                if not len(rows):
                    break
                start = images[rows]
                if restart:
                    own = [generators[row] for row in rows.tolist()]
                    start = self._random_start(start, nearest.sizes[rows], own)
                found = self._search(model, images, start, rows, goal, classes, nearest)
                for row, step in zip(rows.tolist(), found, strict=True):
                    if first[row] is None and step >= 0:
                        first[row] = done + step
                done += self.steps
        self.note("first_success_step", first)
        return nearest.images

    def _unsolved(self, nearest: NearestFound) -> Tensor:
        """Return the rows for which a smaller change is worth a search."""
        if not self.stop_within_epsilon or self.epsilon is None:
            return torch.arange(len(nearest.sizes), device=nearest.sizes.device)
        return (nearest.sizes > self.epsilon).nonzero().flatten()

    def _classes(self, model: HookedModel, images: Tensor, goal: Goal) -> list[Tensor] | list[None]:
        """Return the classes `(B, K)` whose boundaries are tried together; None for one goal."""
        if goal.objective is not None or goal.targets is not None:
            return [None]
        classes = class_count(model, goal)
        count = min(self.target_classes, classes - 1) if classes else self.target_classes
        logits = mean_outputs(model, images, goal, step=0, draws=self.draws)
        likely = likely_others(logits, goal.labels, count)
        return list(likely.split(1, dim=1)) if self.one_by_one else [likely]

    def _random_start(
        self, images: Tensor, sizes: Tensor, generators: list[torch.Generator]
    ) -> Tensor:
        """Return images at half the distance of the nearest found, at most half of epsilon."""
        kind: Literal["uniform", "normal"] = "uniform" if self.norm == "linf" else "normal"
        noise = noise_like(images, kind, generators)
        if self.norm == "linf":
            noise = 2 * noise - 1
        ball = self.ball(images)
        scale = sizes.clamp(max=ball.epsilon) / 2 / ball.size(noise).clamp(min=TINY)
        return (images + noise * scale.to(images).view(-1, 1, 1, 1)).clamp(0, 1)

    def _search(
        self,
        model: HookedModel,
        images: Tensor,
        start: Tensor,
        rows: Tensor,
        goal: Goal,
        classes: Tensor | None,
        nearest: NearestFound,
    ) -> list[int]:
        """Step to boundaries, and offer what is found; returns the step of the first success."""
        now = start.clone()
        first = torch.full((len(rows),), -1)
        active = torch.arange(len(rows), device=rows.device)
        for step in self.track(range(self.steps), f"{self.title()} steps"):
            if not len(active):
                continue
            current = rows[active]
            own, origin, here = goal.rows(current), images[current], now[active]
            which = classes[current] if classes is not None else None
            compute = partial(boundaries, model, here, own, which)
            with self.only(current):
                _, values, slopes = mean_over_draws(model, compute, step=2 * step, draws=self.draws)
            value, normal, _ = nearest_plane(values, slopes, self.norm)
            self.note_gradient(normal, current)
            moved = self._moved(origin, here, value, normal)
            with self.only(current):
                outputs = mean_outputs(model, moved, own, step=2 * step + 1, draws=self.draws)
            reached = own.reached(outputs)
            nearest.offer(current, moved, reached)
            back = origin + self.backward * (moved - origin)
            now[active] = torch.where(reached.view(-1, 1, 1, 1), back, moved)
            new = active[reached].cpu()
            first[new] = torch.where(first[new] < 0, step + 1, first[new])
            if self.stop_within_epsilon and self.epsilon is not None:
                active = active[nearest.sizes[current] > self.epsilon]
        return [int(step) for step in first]

    def _moved(self, origin: Tensor, here: Tensor, value: Tensor, normal: Tensor) -> Tensor:
        """Return the images after a step towards the plane."""
        offset = (normal.double() * (here - origin).double()).flatten(1).sum(1)
        both = step_to_plane(
            torch.cat([here, origin]),
            torch.cat([normal, normal]),
            torch.cat([-value.double(), offset - value.double()]),
            self.norm,
        )
        from_here, from_origin = both.chunk(2)
        ball = self.ball(origin)
        near, far = (ball.size(each).clamp(min=_SHORTEST) for each in (from_here, from_origin))
        share = (near / (near + far)).clamp(max=self.alpha_max).to(here).view(-1, 1, 1, 1)
        ahead = (1 - share) * (here + self.overshoot * from_here)
        return (ahead + share * (origin + self.overshoot * from_origin)).clamp(0, 1)
