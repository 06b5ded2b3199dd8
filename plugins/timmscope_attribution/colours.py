"""Reduces a gradient by colour channel to one value per pixel."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Reduction = Literal["sum", "abs-max", "l2"]
"""`sum` over the colours keeps the sign; `abs-max` is the largest magnitude, as in Simonyan et al.;
`l2` is the Euclidean length."""


def reduce_colours(gradient: Tensor, how: Reduction) -> Tensor:
    """`(B, 3, H, W)` to `(B, H, W)`."""
    if how == "sum":
        return gradient.sum(1)
    return gradient.abs().amax(1) if how == "abs-max" else gradient.square().sum(1).sqrt()
