"""The largest factor by which a linear map stretches a vector, without its matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

LEAST, MOST = 50, 1000
"""Fewest steps, unless the space is exhausted before, and most."""
_CHECKED = 10
"""Steps between two looks at the norm."""
_SETTLED = 1e-6
"""Relative change of the norm between two looks at which the iteration ends."""
_DENSE = 256
"""Number of values of the input up to which the matrix is made."""


def operator_norm(linear: Callable[[Tensor], Tensor], shape: Sequence[int], like: Tensor) -> float:
    """Return the largest singular value of a linear map, that of a small one from its matrix.

    Power iteration with `AᵀA` by the map and its gradient, which for a convolution is the
    transposed convolution. The largest value on the space of all its vectors is taken (Lanczos), as
    it is nearer to the limit than the value of the last vector. It is approached from below; where
    it is settled, it was within 1e-5 of that of the dense matrix in all tests.

    Args:
        linear: takes a tensor of the shape; if this has one row, also several, each for itself.
        shape: shape of its input.
        like: a tensor of the dtype and device to compute with.
    """
    count = math.prod(shape)
    if count <= _DENSE and shape[0] == 1:
        columns = torch.eye(count, dtype=like.dtype, device=like.device).view(count, *shape[1:])
        return float(torch.linalg.matrix_norm(linear(columns).flatten(1).double(), 2))
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(like)
    vector, before = start / start.norm(), torch.zeros_like(start)
    exhausted = 100 * torch.finfo(start.dtype).eps
    diagonal: list[float] = []
    beside: list[float] = []
    known = 0.0
    for step in range(1, min(MOST, count) + 1):
        image = _squared(linear, vector)
        diagonal.append(float((image * vector).sum()))
        image = image - diagonal[-1] * vector - (beside[-1] if beside else 0.0) * before
        length = float(image.norm())
        if length <= exhausted * max(diagonal):
            break
        if step % _CHECKED == 0:
            found = _largest(diagonal, beside)
            if step > LEAST and found - known <= 2 * _SETTLED * found:  # of the squares
                break
            known = found
        before, vector = vector, image / length
        beside.append(length)
    return math.sqrt(_largest(diagonal, beside[: len(diagonal) - 1]))


def _squared(linear: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor:
    """Return `AᵀA v`: the gradient of `‖A v‖² / 2`."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = vector.detach().clone().requires_grad_()
        image = linear(leaf)
        (gradient,) = torch.autograd.grad(image, leaf, image.detach())
    return gradient


def _largest(diagonal: list[float], beside: list[float]) -> float:
    """Return the largest eigenvalue of a symmetric tridiagonal matrix, at least 0."""
    matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    return max(0.0, float(np.linalg.eigvalsh(matrix)[-1]))
