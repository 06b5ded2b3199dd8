"""Keeps the best image of an optimisation, and refuses one whose gradient is zero."""

from __future__ import annotations

import torch
from torch import Tensor

from timmscope.objectives import Objective
from timmscope_registry import TechniqueError

PATIENCE = 8
"""Number of steps within which each image must have a gradient other than zero."""


class BestImages:
    """The best image so far of each row of a batch; it stays on the device.

    Attributes:
        images: `(B, C, H, W)`.
        steps: `(B,)` int64, the step at which each was offered.

    Args:
        count: number of images.
        like: a tensor on the device.
    """

    def __init__(self, count: int, like: Tensor) -> None:
        self.images: Tensor = torch.empty(0)
        self.steps = torch.zeros(count, dtype=torch.long, device=like.device)
        self._scores = torch.full((count,), -torch.inf, device=like.device)

    def offer(self, images: Tensor, scores: Tensor, step: int) -> None:
        """Keep the images whose score `(B,)` exceeds all earlier ones; at first, all."""
        better = (scores > self._scores) if len(self.images) else torch.ones_like(scores).bool()
        if not len(self.images):
            self.images = images
        self.images = torch.where(better[:, None, None, None], images, self.images)
        self.steps = torch.where(better, step, self.steps)
        self._scores = torch.where(better, scores, self._scores)


class GradientCheck:
    """Refuses to continue with images that get no gradient; it is read from the device once.

    Args:
        objective: the objective, for the message.
        count: number of images.
        steps: number of steps of the optimisation.
        first: number of the first image.
        like: a tensor on the device.
        patience: number of steps within which each image must have a gradient.
    """

    def __init__(
        self,
        objective: Objective,
        count: int,
        steps: int,
        first: int,
        like: Tensor,
        patience: int = PATIENCE,
    ) -> None:
        self._objective = objective
        self._first = first
        self._last = min(patience, steps)
        self._found = torch.zeros(count, dtype=torch.bool, device=like.device)

    def add(self, gradient: Tensor, step: int) -> None:
        """Take the gradient `(B, C, H, W)` of a step (from 0).

        Raises:
            TechniqueError: an image's gradient was zero in all of the first steps.
        """
        if step >= self._last:
            return
        self._found |= gradient.flatten(1).abs().amax(1) > 0
        if step + 1 < self._last or bool(self._found.all()):
            return
        dead = ", ".join(str(self._first + int(row)) for row in (~self._found).nonzero().flatten())
        goal = self._objective
        raise TechniqueError(
            f"the gradient of {goal.label} at {' and '.join(goal.points)} is zero for image {dead} "
            f"in each of the first {self._last} steps: the unit is inactive (a ReLU below zero) or "
            "saturated there; choose the layer before the activation, start from a photograph with "
            "init, or try another seed"
        )
