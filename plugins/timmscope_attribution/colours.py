"""From a gradient by colour channel to one value a pixel."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Reduction = Literal["sum", "abs-max", "l2"]
"""`sum` over colours keeps the sign; `abs-max` is the largest magnitude, as in Simonyan et al.;
`l2` the Euclidean length."""


def reduce_colours(gradient: Tensor, how: Reduction) -> Tensor:
    """`(B, 3, H, W)` to `(B, H, W)`."""
    if how == "sum":
        return gradient.sum(1)
    return gradient.abs().amax(1) if how == "abs-max" else gradient.square().sum(1).sqrt()
