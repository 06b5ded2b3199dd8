"""What attacks of least norm share: no radius, unit directions and steps that become smaller."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from timmscope import noise_like
from timmscope_attack.gradient import Gradients

TINY = 1e-12


class MinimumNormAttack(Gradients):
    """Base of attacks that follow gradients to the nearest image that reaches the goal."""

    kind: ClassVar[Literal["fixed", "minimum"]] = "minimum"

    epsilon: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Largest change that counts as a success, in pixel units [0, 1]; by default any."""


def cosine(first: float, last: float, step: int, steps: int) -> float:
    """Return a value that falls from `first` towards `last` along half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2


def lengths(values: Tensor) -> Tensor:
    """Euclidean lengths `(B, 1, 1, 1)` of `(B, C, H, W)`."""
    found: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return found.view(-1, 1, 1, 1)


def directions(gradient: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Return the gradient at unit length; where it is zero, a random direction.

    Args:
        gradient: `(B, C, H, W)`.
        generators: one for each image.
    """
    length = lengths(gradient)
    zero = length.flatten() < TINY
    found = gradient / length.clamp(min=TINY)
    if bool(zero.any()):
        own = [generators[row] for row in zero.nonzero().flatten().tolist()]
        noise = noise_like(gradient[zero], "normal", own)
        found[zero] = noise / lengths(noise)
    return found


def largest_change(images: Tensor) -> Tensor:
    """Return the change of each value to the farther end of [0, 1], `(B, C, H, W)`."""
    return torch.maximum(images, 1 - images)


def free(images: Tensor, gradient: Tensor) -> Tensor:
    """Return which values can move along the gradient without leaving [0, 1], `(B, C, H, W)`."""
    return torch.where(gradient > 0, images < 1, images > 0)
