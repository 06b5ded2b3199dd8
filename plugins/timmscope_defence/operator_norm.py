"""The largest factor by which a linear map stretches a vector, without its matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LEAST = 50
"""Fewest steps, unless the space is exhausted before."""
MOST = 1000
_SETTLED = 1e-6
"""Relative change of the norm over ten steps at which the iteration ends."""


def operator_norm(linear: Callable[[Tensor], Tensor], shape: Sequence[int], like: Tensor) -> float:
    """Return the largest singular value of a linear map.

    Power iteration with `AᵀA` by the map and its gradient, which for a convolution is the
    transposed convolution. The largest value on the space of all its vectors is taken (Lanczos), as
    it is nearer to the limit than the value of the last vector. It is approached from below; where
    it is settled, it was within 1e-5 of that of the dense matrix in all tests.

    Args:
        linear: takes a tensor of the shape, and returns a tensor.
        shape: shape of its input.
        like: a tensor of the dtype and device to compute with.
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(like)
    vector, before = start / start.norm(), torch.zeros_like(start)
    exhausted = 100 * torch.finfo(start.dtype).eps
    diagonal: list[float] = []
    beside: list[float] = []
    found: list[float] = []
    for step in range(min(MOST, start.numel())):
        image = _squared(linear, vector)
        diagonal.append(float((image * vector).sum()))
        image = image - diagonal[-1] * vector - (beside[-1] if beside else 0.0) * before
        found.append(_largest(diagonal, beside) ** 0.5)
        length = float(image.norm())
        settled = step >= LEAST and found[-1] - found[-11] <= _SETTLED * found[-1]
        if settled or length <= exhausted * max(diagonal):
            break
        before, vector = vector, image / length
        beside.append(length)
    return max(found)


def _squared(linear: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor:
    """Return `AᵀA v`: the gradient of `‖A v‖² / 2`."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = vector.detach().clone().requires_grad_()
        image = linear(leaf)
        (gradient,) = torch.autograd.grad(image, leaf, image.detach())
    return gradient


def _largest(diagonal: list[float], beside: list[float]) -> float:
    """Return the largest eigenvalue of a symmetric tridiagonal matrix, at least 0."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if beside:
        off = torch.tensor(beside, dtype=torch.float64)
        matrix = matrix + torch.diag(off, 1) + torch.diag(off, -1)
    return max(0.0, float(torch.linalg.eigvalsh(matrix)[-1]))
