"""Checks what a technique's method returned, before a result is made from it.

Every error is one line that names the technique with its plugin and version, because the user of a
third party's plugin needs to know where the fault is.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from timmscope.parameters import technique_error
from timmscope.techniques.base import Technique
from timmscope_registry.plugin_faults import brief, with_article

T = TypeVar("T")


def checked_type(technique: Technique, value: object, expected: type[T]) -> T:
    """Return the value.

    Raises:
        TechniqueError: it has another type.
    """
    if not isinstance(value, expected):
        wanted = with_article(expected.__name__)
        raise technique_error(technique, f"returned {brief(value)}", expected=wanted)
    return value


def checked_numbers(
    technique: Technique,
    value: object,
    what: str,
    shape: tuple[int | str, ...],
    advice: str | None = None,
) -> Tensor:
    """Return the tensor, detached from its graph.

    Args:
        technique: technique that returned it.
        value: the returned value.
        what: what the value should be, in the plural.
        shape: expected sizes; a name stands for any size but zero.
        advice: what to do if values are not finite; by default to tell the plugin's authors.

    Raises:
        TechniqueError: it is not a tensor of finite real numbers of that shape.
    """
    wanted = f"a tensor ({', '.join(map(str, shape))})"
    if not isinstance(value, Tensor):
        raise technique_error(technique, f"returned {brief(value)} for {what}", expected=wanted)
    if kind := _unsupported_kind(value):
        wanted = "a dense tensor of real numbers"
        raise technique_error(technique, f"returned {what} of {kind}", expected=wanted)
    if value.ndim != len(shape) or not all(
        size > 0 if isinstance(wish, str) else size == wish
        for size, wish in zip(value.shape, shape, strict=True)
    ):
        did = f"returned {what} of shape {tuple(value.shape)}"
        raise technique_error(technique, did, expected=wanted)
    if not bool(torch.isfinite(value.float()).all()):  # results are float32
        raise technique_error(technique, f"returned NaN or infinite {what}", advice=advice)
    return value.detach()


def checked_pixels(technique: Technique, images: object, shape: tuple[int | str, ...]) -> Tensor:
    """Return images as float32 on the CPU.

    Args:
        technique: technique that returned them.
        images: the returned value.
        shape: expected sizes, as for `checked_numbers`.

    Raises:
        TechniqueError: they are not images in [0, 1] of that shape.
    """
    pixels = checked_numbers(technique, images, "images", shape).float().cpu()
    low, high = (float(value) for value in torch.aminmax(pixels))
    if low < 0 or high > 1:
        did = f"returned pixels from {low:.3g} to {high:.3g}"
        raise technique_error(technique, did, expected="[0, 1]")
    return pixels


def checked_frames(technique: Technique, frames: object, images: Tensor) -> Tensor | None:
    """Return the frames of images `(B, C, H, W)` as `(F, B, C, H, W)` uint8, or None without any.

    Raises:
        TechniqueError: they are not images in [0, 1] of that shape.
    """
    if frames is None:
        return None
    pixels = checked_pixels(technique, frames, ("F", *images.shape))
    return (pixels * 255).round().to(torch.uint8)


def _unsupported_kind(value: Tensor) -> str:
    """Return why a tensor is not a dense array of real numbers; empty if it is one."""
    if value.is_complex() or value.is_quantized:
        return str(value.dtype)
    if value.is_nested or value.is_meta:
        return "a nested tensor" if value.is_nested else "the meta device"
    return "" if value.layout is torch.strided else str(value.layout)
