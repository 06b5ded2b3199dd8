"""Priors of natural images, which syntheses subtract from an objective.

Both are means over pixels, so that their weights hold for every image size.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

_SMOOTHING = 1e-8
"""Added under the root of a total variation with an exponent below 2, whose gradient is infinite
where the image is constant; in squared pixel units."""


def total_variation(images: Tensor, beta: float = 2.0) -> Tensor:
    """Mean over pixels of `Σ_c (Δx² + Δy²)^(β/2)`, `(B,)`; 0 for images of one colour.

    Δx and Δy are the differences to the next pixel, 0 at the right and lower border.

    Args:
        images: `(B, C, H, W)`.
        beta: exponent; 1 keeps edges, 2 is the sum of squares, larger ones blur edges.
    """
    right = functional.pad(images[..., 1:] - images[..., :-1], (0, 1))
    down = functional.pad(images[..., 1:, :] - images[..., :-1, :], (0, 0, 0, 1))
    squares = right.square() + down.square()
    if beta != 2:
        extra = squares.new_tensor(_SMOOTHING if beta < 2 else 0.0)
        squares = (squares + extra) ** (beta / 2) - extra ** (beta / 2)
    return squares.sum(1).mean((1, 2))


def alpha_norm(images: Tensor, alpha: float = 6.0) -> Tensor:
    """Mean over pixels of `|x|^α`, `(B,)`, with the length `|x|` of a pixel's colour `(C,)`.

    Args:
        images: `(B, C, H, W)`, minus the colour that has no cost.
        alpha: exponent, at least 2; the larger, the more only strong colours cost.
    """
    return (images.square().sum(1) ** (alpha / 2)).mean((1, 2))
