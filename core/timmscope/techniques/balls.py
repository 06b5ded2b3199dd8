"""The ball of changes that an attack may make: steepest step, projection and uniform points.

The arithmetic is foolbox's to the last bit (same operations in the same order), so that results
can be compared exactly. Changes and gradients are `(B, C, H, W)` in pixel units [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from timmscope.techniques.session import noise_like

Norm = Literal["linf", "l2"]
"""Name of a norm of changes: the largest absolute value, or the Euclidean length."""

_TINY = 1e-12
_LINF_EPSILON = 8 / 255
_L2_EPSILON_AT_224 = 3.0


@dataclass(frozen=True, kw_only=True)
class Ball:
    """All changes whose norm is at most `epsilon`, pixel units [0, 1]."""

    norm: Norm
    epsilon: float

    @classmethod
    def of(cls, norm: Norm, epsilon: float | None, images: Tensor) -> Ball:
        """The ball of a radius; by default the usual radius for images of that size.

        The default is 8/255 for L∞. For L2 it is 3.0 at 224×224, as on the RobustBench leaderboard,
        and the same mean change per pixel at other sizes (0.43 at 32×32).
        """
        if epsilon is None:
            side = (images.shape[-2] * images.shape[-1]) ** 0.5
            epsilon = _LINF_EPSILON if norm == "linf" else _L2_EPSILON_AT_224 * side / 224
        return cls(norm=norm, epsilon=epsilon)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of unit norm in which a linear function rises fastest."""
        if self.norm == "linf":
            return gradient.sign()
        return gradient * (1 / _l2(gradient))

    def project(self, change: Tensor) -> Tensor:
        """The nearest change inside the ball."""
        if self.norm == "linf":
            return change.clamp(-self.epsilon, self.epsilon)
        return change * (self.epsilon / _l2(change)).clamp(max=1)

    def step(self, centre: Tensor, images: Tensor, gradient: Tensor, size: float) -> Tensor:
        """`clip(centre + project(images + size · steepest(gradient) − centre))`, inside [0, 1].

        Projection comes before clipping to [0, 1], as in foolbox; the clipped change is still in
        the ball, because the centre is in [0, 1].

        Args:
            centre: `(B, C, H, W)`, the centres of the balls.
            images: `(B, C, H, W)`, where the step starts.
            gradient: `(B, C, H, W)` at `images`.
            size: length of the step in the ball's norm.
        """
        moved = images + size * self.steepest(gradient)
        return (centre + self.project(moved - centre)).clamp(0, 1)

    def sample(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Changes drawn uniformly from the ball, for each image from its own generator.

        L2: a uniform direction times `epsilon · u^(1/d)`; without the root, most points would be
        near the centre.
        """
        if self.norm == "linf":
            return (2 * noise_like(images, "uniform", generators) - 1) * self.epsilon
        normal = noise_like(images, "normal", generators)
        radius = noise_like(images[:, :1, :1, :1], "uniform", generators)
        dimensions = images[0].numel()
        return normal / _l2(normal) * (self.epsilon * radius ** (1 / dimensions))


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


def _l2(values: Tensor) -> Tensor:
    """Norms `(B, 1, 1, 1)`, never 0."""
    norms = (values.flatten(1) ** 2).sum(1).sqrt()
    return norms.clamp(min=_TINY).view(-1, 1, 1, 1)
