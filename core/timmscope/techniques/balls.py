"""The ball of changes that an attack may make: its norm, projection, steepest step and noise.

For L∞ and L2 the arithmetic is foolbox's to the last bit (same operations in the same order), so
that results can be compared exactly. Changes and gradients are `(B, C, H, W)`, in pixel units
[0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from timmscope.techniques.box_projections import project_l1_in_box
from timmscope.techniques.session import noise_like

Norm = Literal["linf", "l2", "l1", "l0"]
"""Norm of a change: its largest value, its Euclidean length, the sum of its magnitudes, or the
number of pixels that change in any channel."""

NORM_NAMES: dict[str, str] = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}

RADII: Mapping[Norm, float] = {"linf": 8 / 255, "l2": 3.0, "l1": 60.0, "l0": 150.0}
"""Usual radii: L∞ at any size, the others at 224×224."""

L1_SHARE = 0.2
"""Share of the values, those of the largest slopes, that a step in L1 changes."""

_TINY = 1e-12
_RELATIVE = 1e-5
_ROUNDING = 2e-7
"""Largest rounding error of a float32 value in [0, 1] after a sum and a difference."""


@dataclass(frozen=True, kw_only=True)
class Ball:
    """All changes whose norm is at most `epsilon`.

    Attributes:
        norm: the norm.
        epsilon: the radius in pixel units [0, 1]; for L0 a number of pixels.
    """

    norm: Norm
    epsilon: float

    @classmethod
    def of(
        cls,
        norm: Norm,
        epsilon: float | None,
        images: Tensor,
        radii: Mapping[Norm, float] = RADII,
    ) -> Ball:
        """Return the ball of a radius; by default the usual radius for images of that size.

        The defaults are 8/255 for L∞, and at 224×224 3.0 for L2, as on the RobustBench leaderboard,
        60 for L1 (Croce & Hein, ICML 2021) and 150 pixels for L0 (Croce et al., AAAI 2022). Those
        three grow with the side of the images; for L2 that is the same mean change per pixel (0.43
        at 32×32).

        Args:
            norm: the norm.
            epsilon: the radius; None for the default.
            images: `(B, C, H, W)`, of which only the size matters.
            radii: other defaults, for L∞ and at 224×224.
        """
        if epsilon is None:
            side = (images.shape[-2] * images.shape[-1]) ** 0.5
            epsilon = radii[norm] if norm == "linf" else radii[norm] * side / 224
        return cls(norm=norm, epsilon=epsilon)

    def size(self, change: Tensor) -> Tensor:
        """Return the norm of each change, `(B,)` float64."""
        return change_size(change, self.norm)

    def holds(self, change: Tensor) -> Tensor:
        """Whether each change is inside the ball, `(B,)`.

        The norm may exceed `epsilon` by 1e-5 of it, and by what a rounding error of 2e-7 in every
        value amounts to: 2e-7 for L∞, 2e-7·√d for L2 and 2e-7·d for L1 with d values. L0 is exact.
        """
        values = change[0].numel()
        power = {"linf": 0.0, "l2": 0.5, "l1": 1.0, "l0": 0.0}[self.norm]
        slack = 0.0 if self.norm == "l0" else _RELATIVE * self.epsilon + _ROUNDING * values**power
        return self.size(change) <= self.epsilon + slack

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the direction of unit norm in which a linear function rises fastest.

        L∞: the sign. L2: the gradient at unit length. L1: the value with the largest slope alone.
        L0: the signs of the pixel with the largest sum of slopes.
        """
        if self.norm == "linf":
            return gradient.sign()
        if self.norm == "l2":
            return gradient * (1 / _l2(gradient))
        slopes = gradient.abs() if self.norm == "l1" else gradient.abs().sum(1, keepdim=True)
        return gradient.sign() * _largest(slopes, 1)

    def project(self, change: Tensor) -> Tensor:
        """Return the nearest change inside the ball, by Euclidean distance.

        L1: values shrink towards 0 by the same amount (Duchi, Shalev-Shwartz, Singer & Chandra,
        "Efficient Projections onto the ℓ1-Ball for Learning in High Dimensions", ICML 2008).
        L0: the ⌊epsilon⌋ pixels of largest length stay.
        """
        if self.norm == "linf":
            return change.clamp(-self.epsilon, self.epsilon)
        if self.norm == "l2":
            return change * (self.epsilon / _l2(change)).clamp(max=1)
        return project_change(change, self.norm, change.new_full((len(change),), self.epsilon))

    def direction(self, gradient: Tensor, share: Tensor | float = L1_SHARE) -> Tensor:
        """Return a direction of unit norm for an ascent of many steps.

        It is the steepest one, but in L1 the signs of the values with the largest slopes, divided
        by their number, because steps of a single value take too many (Tramèr & Boneh, NeurIPS
        2019, arXiv:1904.13000).

        Args:
            gradient: `(B, C, H, W)`.
            share: share of the values that a step in L1 changes, `(B,)` or one for all; at least
                one value changes.
        """
        if self.norm != "l1":
            return self.steepest(gradient)
        slopes = gradient.abs().flatten(1)
        wanted = gradient.new_ones(len(gradient)) * share * slopes.shape[1]
        counts = wanted.round().long().clamp(1, slopes.shape[1])
        least = slopes.sort(1, descending=True).values.gather(1, counts[:, None] - 1)
        signs = gradient.sign() * (slopes >= least).view_as(gradient)
        return signs / signs.abs().flatten(1).sum(1).clamp(min=1).view(-1, 1, 1, 1)

    def inside(self, centre: Tensor, moved: Tensor) -> Tensor:
        """Return images in the ball around `centre` and in [0, 1], near those that moved out.

        In L∞ and L1 they are the nearest ones. In L2 and L0 the change is projected and then
        clipped, as in foolbox; it stays in the ball, because the centre is in [0, 1].

        Args:
            centre: `(B, C, H, W)` in [0, 1].
            moved: `(B, C, H, W)`.
        """
        change = moved - centre
        if self.norm == "l1":
            return (centre + project_l1_in_box(centre, change, self.epsilon)).clamp(0, 1)
        return (centre + self.project(change)).clamp(0, 1)

    def step(self, centre: Tensor, images: Tensor, gradient: Tensor, size: float) -> Tensor:
        """`inside(centre, images + size · direction(gradient))`: a step of projected ascent.

        Args:
            centre: `(B, C, H, W)`, the centres of the balls.
            images: `(B, C, H, W)`, where the step starts.
            gradient: `(B, C, H, W)` at `images`.
            size: length of the step in the ball's norm.
        """
        return self.inside(centre, images + size * self.direction(gradient))

    def sample(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Return changes drawn uniformly from the ball, for each image from its own generator.

        L2: a uniform direction times `epsilon · u^(1/d)`; without the root, most points would be
        near the centre. L1: d signed exponential numbers, divided by their sum and one more. L0:
        ⌊epsilon⌋ random pixels with values in [-1, 1].
        """
        if self.norm == "linf":
            return (2 * noise_like(images, "uniform", generators) - 1) * self.epsilon
        if self.norm == "l2":
            normal = noise_like(images, "normal", generators)
            radius = noise_like(images[:, :1, :1, :1], "uniform", generators)
            dimensions = images[0].numel()
            return normal / _l2(normal) * (self.epsilon * radius ** (1 / dimensions))
        signs = 2 * noise_like(images, "uniform", generators) - 1
        if self.norm == "l0":
            order = noise_like(images[:, :1], "uniform", generators)
            return signs * _largest(order, int(self.epsilon))
        lengths = _exponential(noise_like(images, "uniform", generators))
        rest = _exponential(noise_like(images[:, :1, :1, :1], "uniform", generators))
        total = lengths.flatten(1).sum(1).view(-1, 1, 1, 1) + rest
        return signs.sign() * lengths / total * self.epsilon

    def noise(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Return random changes whose norm is `epsilon`, for each image from its own generator.

        L∞: every value is ±epsilon. L2 and L1: a uniform point of the sphere. L0: ⌊epsilon⌋ random
        pixels with values ±1.
        """
        if self.norm == "linf":
            return (noise_like(images, "uniform", generators) - 0.5).sign() * self.epsilon
        drawn = self.sample(images, generators)
        if self.norm == "l0":
            return drawn.sign()
        sizes = self.size(drawn).clamp(min=_TINY).to(drawn)
        return drawn * (self.epsilon / sizes).view(-1, 1, 1, 1)


def projected_ascent(
    value: Callable[[Tensor], Tensor],
    centre: Tensor,
    start: Tensor,
    ball: Ball,
    *,
    step_size: float,
    steps: int,
) -> Tensor:
    """Raise a value by gradient steps inside a ball: the inner loop of PGD, and nothing else.

    It counts no passes, reports no progress and checks nothing, so that a training can run it at
    every step. It works under `no_grad` and `inference_mode`, and changes no `.grad`.

    Args:
        value: gives the value of each image, `(B,)`, or their sum; every image's must not depend
            on the others.
        centre: `(B, C, H, W)` in [0, 1], the centres of the balls.
        start: `(B, C, H, W)`, the images to start from.
        ball: the ball around each image.
        step_size: length of a step in the ball's norm.
        steps: number of steps.

    Returns:
        The last images, `(B, C, H, W)` in [0, 1].
    """
    images = start.detach()
    for _ in range(steps):
        with torch.inference_mode(False), torch.enable_grad():
            leaf = images.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(value(leaf).sum(), leaf)
        images = ball.step(centre, images, gradient, step_size)
    return images


def project_change(change: Tensor, norm: Norm, radii: Tensor) -> Tensor:
    """Return the nearest change inside a ball, by Euclidean distance, with a radius per image.

    It is `Ball.project` for balls of different sizes.

    Args:
        change: `(B, C, H, W)` in pixel units [0, 1].
        norm: norm of the balls.
        radii: `(B,)` radii in that norm, at least 0; for L0 numbers of pixels, which round down.
    """
    each = radii.to(change).view(-1, 1, 1, 1)
    if norm == "linf":
        return change.clamp(-each, each)
    if norm == "l2":
        return change * (each / _l2(change)).clamp(max=1)
    if norm == "l1":
        return change.sign() * (change.abs() - _l1_threshold(change, radii)).clamp(min=0)
    return change * _largest((change**2).sum(1, keepdim=True), radii.floor().long())


def change_size(change: Tensor, norm: Norm) -> Tensor:
    """Return the norm of each change `(B, C, H, W)`, as `(B,)` float64; for L0 count pixels."""
    if norm == "l0":
        return (change != 0).any(1).flatten(1).sum(1).double()
    values = change.double().abs().flatten(1)
    if norm == "linf":
        return values.amax(1)
    return values.sum(1) if norm == "l1" else (values**2).sum(1).sqrt()


def _l2(values: Tensor) -> Tensor:
    """Norms `(B, 1, 1, 1)`, never 0."""
    norms = (values.flatten(1) ** 2).sum(1).sqrt()
    return norms.clamp(min=_TINY).view(-1, 1, 1, 1)


def _largest(values: Tensor, count: int | Tensor) -> Tensor:
    """Return 1 where a value is one of the `count` largest of its image, else 0; ties by place."""
    flat = values.flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    counts = torch.as_tensor(count, device=flat.device).view(-1, 1)
    first = torch.arange(flat.shape[1], device=flat.device) < counts
    chosen = first.to(flat).expand_as(flat)
    return torch.zeros_like(flat).scatter_(1, order, chosen).view_as(values)


def _l1_threshold(change: Tensor, radii: Tensor) -> Tensor:
    """Return by how much the magnitudes must shrink to sum to the radii, `(B, 1, 1, 1)`."""
    magnitudes = change.abs().flatten(1).double()
    ordered, _ = magnitudes.sort(1, descending=True)
    excess = ordered.cumsum(1) - radii.double().view(-1, 1)
    ranks = torch.arange(1, ordered.shape[1] + 1, device=change.device)
    stays = ordered * ranks > excess  # a run from the first: Duchi et al., lemma 2
    last = stays.sum(1, keepdim=True).clamp(min=1)
    threshold = excess.gather(1, last - 1) / last
    return threshold.clamp(min=0).to(change).view(-1, 1, 1, 1)


def _exponential(uniform: Tensor) -> Tensor:
    """Return exponentially distributed numbers from uniform ones in [0, 1)."""
    return -torch.log1p(-uniform)
