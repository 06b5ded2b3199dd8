"""Losses of style and content: the distance between the features of two images.

Both are relative, so that a layer counts the same for any scale and number of channels: 1 is the
loss of features that are all zero.
"""

from __future__ import annotations

from torch import Tensor


def gram(features: Tensor) -> Tensor:
    """Gram matrix `F Fᵀ / (h·w)` of features `(B, C, h, w)`: `(B, C, C)`.

    Gatys et al., CVPR 2016, eq. 3, divided by the number of positions, so that images of
    different sizes can be compared.
    """
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def relative_error(value: Tensor, target: Tensor) -> Tensor:
    """`Σ (value − target)² / Σ target²`, a scalar."""
    return (value - target).square().sum() / target.square().sum().clamp_min(1e-12)


def total_variation(images: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels of `(B, 3, H, W)`, a scalar."""
    down = (images[:, :, 1:] - images[:, :, :-1]).square().mean()
    across = (images[:, :, :, 1:] - images[:, :, :, :-1]).square().mean()
    return down + across
