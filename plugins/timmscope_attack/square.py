"""Square Attack: random squares of change, kept where they help, without a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from timmscope import AttackTechnique, Ball, Goal, HookedModel, Norm, image_generators
from timmscope_attack.outputs import mean_outputs

_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Steps of 10,000 after which the area of the squares is halved."""
_BLOCK = 64
"""Steps for which random numbers are drawn at once."""
_LEAST_SIDE = 3
"""Smallest side of a window in L2 and L1, in pixels."""


class Square(AttackTechnique):
    """Square changes random squares of an image, and keeps a change if the margin rises.

    `x' = clip(Π(x + δ))`, and `x ← x'` if `margin(x') > margin(x)`, with a square δ of side
    `√(p·H·W)` at a random place and a random sign per channel. It starts from vertical stripes in
    linf, from a grid of bumps in l2 and l1. In l2 and l1 a second square gives its norm to the
    first one. p is halved after given shares of the queries. Each image has squares of its own, so
    that a result does not depend on the batch. It needs no gradient, only scores: it works on
    prediction functions and behind defences without a gradient. An image that does not reach the
    goal is returned where its margin was largest. Cost: at most `queries` forward passes per image;
    an image that is fooled needs no more.

    Paper:
        - Andriushchenko, Croce, Flammarion & Hein, "Square Attack: a Query-Efficient Black-Box
          Adversarial Attack via Random Search", ECCV 2020, arXiv:1912.00049.
        - Croce & Hein, "Mind the Box: l1-APGD for Sparse Adversarial Attacks on Image Classifiers",
          ICML 2021, arXiv:2103.01208.

    Inherited parameters:
        epsilon: radius of the ball in pixel units [0, 1]; by default 8/255 for linf, at 224×224 3.0
            for l2 and 60 for l1.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: a label or target is no class of the model, or the model has no classes.
        ParameterError: a parameter or `batch_size` is out of range, or a target equals its label.
        TechniqueError: the changed images are outside the ball.
        UnsupportedModel: the model does not take the images.
    """

    uses_gradients: ClassVar[bool] = False

    norm: Literal["linf", "l2", "l1"] = "linf"
    """Norm of the change: `linf`, its largest value, `l2`, its Euclidean length, or `l1`, the sum
    of its magnitudes."""
    queries: int = Field(default=1000, ge=1)
    """Largest number of forward passes per image; AutoAttack takes 5,000, the paper 10,000."""
    area: float = Field(default=0.8, gt=0, le=1)
    """Share p of the image that the first squares cover."""
    rescale: bool = True
    """Halve p at the same shares of the queries, however many there are; otherwise after numbers of
    queries that are meant for 10,000."""
    draws: int = Field(default=10, ge=1)
    """Number of draws of a random defence over which each margin is averaged; each is a query. A
    model without a random defence needs one."""

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        """Start with stripes or bumps, then change a square at each step."""
        ball = self.ball(images)
        generators = image_generators(len(images))
        numbers = _Numbers(generators, 5 + images.shape[1])
        draws = self.draws if model.has_random_defence else 1
        steps = max(self.queries // draws, 1)
        best = _start(images, ball, generators)
        highest = images.new_full((len(images),), -torch.inf)
        first = torch.full((len(images),), -1)
        active = torch.arange(len(images), device=images.device)
        propose = _square if ball.norm == "linf" else _bump
        for step in self.track(range(steps), f"{self.title()} queries"):
            if not len(active):
                continue
            tried = best[active]
            if step:
                side = self._side(images, step - 1, steps)
                tried = propose(images[active], tried, ball, side, numbers.next(active))
            own = goal.rows(active)
            with self.only(active):
                outputs = mean_outputs(model, tried, own, step=step, draws=draws)
            margin, reached = own.margin(outputs).to(highest), own.reached(outputs)
            better = reached | (margin > highest[active])
            best[active[better]] = tried[better]
            highest[active[better]] = margin[better]
            first[active[reached].cpu()] = (step + 1) * draws
            active = active[~reached]
        self.note("queries_to_success", [count if count > 0 else None for count in first.tolist()])
        return best

    def _side(self, images: Tensor, step: int, steps: int) -> int:
        """Return the side of the square at a step, in pixels."""
        at = step * 10_000 // steps if self.rescale else step
        halvings = sum(at > after for after in _HALVED_AFTER)
        height, width = images.shape[-2:]
        side = max(round(math.sqrt(self.area / 2**halvings * height * width)), 1)
        if self.norm != "linf":
            side = max(side, _LEAST_SIDE) // 2 * 2 + 1  # odd
        return int(min(side, height, width))


class _Numbers:
    """Uniform random numbers, a row per image, each from the image's own generator.

    They are drawn for many steps at once, because a call per image and step would take longer than
    a small model.
    """

    def __init__(self, generators: list[torch.Generator], width: int) -> None:
        self._generators = generators
        self._width = width
        self._block = torch.zeros(len(generators), _BLOCK, width)
        self._used = _BLOCK

    def next(self, rows: Tensor) -> Tensor:
        """Return `(n, width)` numbers in [0, 1) of images that all steps so far included."""
        if self._used == _BLOCK:
            self._used = 0
            for row in rows.tolist():
                generator = self._generators[row]
                self._block[row] = torch.rand(_BLOCK, self._width, generator=generator)
        self._used += 1
        return self._block[rows.cpu(), self._used - 1].to(rows.device)


def _signs(uniform: Tensor) -> Tensor:
    """Return -1 or 1."""
    return (uniform < 0.5).to(uniform) * 2 - 1


def _places(uniform: Tensor, size: int, side: int) -> Tensor:
    """Return where windows begin, `(n,)` int64, each place with the same probability."""
    return (uniform * (size - side + 1)).long().clamp(max=size - side)


def _square(images: Tensor, best: Tensor, ball: Ball, side: int, numbers: Tensor) -> Tensor:
    """Move a square of each image to the edge of the ball, each channel up or down."""
    count, channels, height, width = images.shape
    top, left = _places(numbers[:, 0], height, side), _places(numbers[:, 1], width, side)
    signs = _signs(numbers[:, 2 : 2 + channels]).to(images).view(count, channels, 1, 1)
    window = (
        _between(top, height, side)[:, None, :, None] & _between(left, width, side)[:, None, None]
    )
    return ball.inside(images, best + 2 * ball.epsilon * signs * window)


def _between(first: Tensor, size: int, side: int) -> Tensor:
    """Return which of the positions are in a window, `(n, size)` bool."""
    positions = torch.arange(size, device=first.device)
    return (positions >= first[:, None]) & (positions < first[:, None] + side)


def _bump(images: Tensor, best: Tensor, ball: Ball, side: int, numbers: Tensor) -> Tensor:
    """Replace the change in a window by a bump, with the norm of a second window that is erased."""
    count, channels = images.shape[:2]
    power = 2 if ball.norm == "l2" else 1
    change = best - images
    window = _window(numbers[:, 0], numbers[:, 1], images, side)
    erased = _window(numbers[:, 2], numbers[:, 3], images, side)
    covered = torch.zeros_like(change, dtype=torch.bool)
    covered[window] = True
    covered[erased] = True
    free = (ball.epsilon**power - _sums(change, power, (1, 2, 3))).clamp(min=0) / channels
    budget = free + _sums(change * covered, power, (2, 3))
    if ball.norm == "l1":
        budget = budget * channels  # more than there is: the projection takes it back
    old = change[window]
    old = old / (_sums(old, power, (2, 3)) ** (1 / power) + 1e-12)
    shape = _bump_shape(side, ball.norm).to(images)
    turned = (numbers[:, 4] < 0.5).view(count, 1, 1, 1)
    signs = _signs(numbers[:, 5 : 5 + channels]).to(images).view(count, channels, 1, 1)
    new = torch.where(turned, shape, shape.T) * signs + old
    new = new / (_sums(new, power, (2, 3)) ** (1 / power) + 1e-12)
    change[erased] = 0
    change[window] = new * budget ** (1 / power)
    return _on_surface(images, change, ball)


def _window(down: Tensor, right: Tensor, images: Tensor, side: int) -> tuple[Tensor, ...]:
    """Return the index of a window per image, whose values are `(n, C, side, side)`."""
    count, channels, height, width = images.shape
    along = torch.arange(side, device=images.device)
    rows = (_places(down, height, side)[:, None] + along).view(count, 1, side, 1)
    columns = (_places(right, width, side)[:, None] + along).view(count, 1, 1, side)
    image = torch.arange(count, device=images.device).view(count, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, channels, 1, 1)
    return image, channel, rows, columns


def _sums(values: Tensor, power: int, axes: tuple[int, ...]) -> Tensor:
    return (values.abs() ** power).sum(axes, keepdim=True)


def _on_surface(images: Tensor, change: Tensor, ball: Ball) -> Tensor:
    """Return images whose change has the norm epsilon, before they are clipped."""
    if ball.norm == "l2":
        return (images + ball.epsilon * ball.steepest(change)).clamp(0, 1)
    return ball.inside(images, images + change)


@cache
def _bump_shape(side: int, norm: Norm) -> Tensor:
    """Return a bump beside a dent, `(side, side)` of norm 1: rectangles within rectangles."""
    power = 2 if norm == "l2" else 1
    halves = []
    for height, sign in ((side // 2, 1.0), (side - side // 2, -1.0)):
        down = (torch.arange(height) - height // 2).abs()
        right = (torch.arange(side) - side // 2).abs()
        ring = torch.maximum(down[:, None], right)  # the smallest rectangle that contains a pixel
        count = max(height // 2, side // 2) + 1
        weights = torch.arange(1, count + 1, dtype=torch.float64) ** -(2.0 if power == 2 else 4.0)
        outer = weights.flip(0).cumsum(0).flip(0)  # the sum over all rectangles that contain it
        half = outer[ring]
        halves.append(sign * half / torch.linalg.vector_norm(half, power).clamp(min=1e-12))
    whole = torch.cat(halves)
    length: Tensor = torch.linalg.vector_norm(whole, power)
    return whole / length


def _start(images: Tensor, ball: Ball, generators: list[torch.Generator]) -> Tensor:
    """Return images with vertical stripes (linf), or with a grid of bumps."""
    count, channels, height, width = images.shape
    draw: Callable[..., Tensor] = torch.rand
    if ball.norm == "linf":
        rows = [draw(channels, 1, width, generator=each) for each in generators]
        return ball.inside(images, images + ball.epsilon * _signs(torch.stack(rows)).to(images))
    side = max(min(height, width) // 5, 1)
    down, right = height // side, width // side
    shape = _bump_shape(side, ball.norm).to(images)
    grids = torch.stack([draw(channels + 1, down, right, generator=each) for each in generators])
    grids = grids.to(images)[..., None, None]  # (n, C + 1, down, right, 1, 1)
    tiles = torch.where(grids[:, -1:] < 0.5, shape, shape.T) * _signs(grids[:, :-1])
    tiles = tiles.transpose(3, 4).reshape(count, channels, down * side, right * side)
    change = torch.zeros_like(images)
    top, left = (height - down * side) // 2, (width - right * side) // 2
    change[..., top : top + down * side, left : left + right * side] = tiles
    return _on_surface(images, change, ball)
