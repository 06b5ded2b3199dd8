"""Feeds weights into a hash: tensors, and what quantised modules keep in their state dicts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def activations_digest(weights_sha256: str, defences: Sequence[str]) -> str:
    """Return a digest of what computes activations from pixels: weights, and texts of defences.

    Without defences it is that of the weights.
    """
    if not defences:
        return weights_sha256
    return hashlib.sha256("\n".join([weights_sha256, *defences]).encode()).hexdigest()


def add_weight(digest: hashlib._Hash, name: str, value: object) -> None:
    """Add the name, dtype, shape and bytes of a weight.

    A quantised tensor counts as its integers, scales and zero points. A dynamically quantised layer
    keeps a tuple of weight and bias, and a dtype.

    Args:
        digest: hash to update.
        name: name of the weight.
        value: an entry of a module's state dict.

    Raises:
        TypeError: the value is neither a tensor nor a plain value.
        RuntimeError: the tensor has no bytes that can be read.
    """
    if isinstance(value, Tensor) and value.is_quantized:
        add_weight(digest, f"{name} {value.dtype}", value.int_repr())
        for part, number in _quantisation(value).items():
            add_weight(digest, f"{name}.{part}", number)
    elif isinstance(value, Tensor):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        flat = value.detach().cpu().to_dense().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    elif isinstance(value, tuple | list):
        for number, part in enumerate(value):
            add_weight(digest, f"{name}.{number}", part)
    elif value is None or isinstance(value, bool | int | float | str | bytes | torch.dtype):
        digest.update(f"{name} {value!r}\n".encode())
    else:
        raise TypeError("it is neither a tensor nor a number")


def _quantisation(value: Tensor) -> dict[str, object]:
    if value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return {"scale": value.q_scale(), "zero_point": value.q_zero_point()}
    return {
        "axis": value.q_per_channel_axis(),
        "scales": value.q_per_channel_scales(),
        "zero_points": value.q_per_channel_zero_points(),
    }
