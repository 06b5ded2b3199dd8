"""Checks what a technique's method returned, before anything is made of it.

Whatever is wrong is reported as the technique's fault, with its plugin and version: the user of
someone else's plugin sees nothing but that line.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from timmscope.techniques.base import Technique, technique_error
from timmscope_registry.plugin_faults import brief, with_article

T = TypeVar("T")


def checked_type(technique: Technique, value: object, expected: type[T]) -> T:
    """The same value.

    Raises:
        TechniqueError: it is of another type.
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
    """The same tensor, out of its graph.

    Args:
        technique: what returned it.
        value: what it returned.
        what: what that should be, in the plural.
        shape: the sizes expected; a name stands for any size but zero.
        advice: what to do where values are not finite; by default to tell the plugin's authors.

    Raises:
        TechniqueError: it is no tensor of finite real numbers of that shape.
    """
    wanted = f"a tensor ({', '.join(map(str, shape))})"
    if not isinstance(value, Tensor):
        raise technique_error(technique, f"returned {brief(value)} for {what}", expected=wanted)
    if kind := _strange(value):
        wanted = "real numbers, none left out"
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


def checked_pixels(
    technique: Technique, images: object, shape: tuple[int | str, ...] = ("B", 3, "H", "W")
) -> Tensor:
    """Images as float32 on the CPU.

    Args:
        technique: what returned them.
        images: what it returned.
        shape: the sizes expected, as for `checked_numbers`.

    Raises:
        TechniqueError: they are no RGB images in [0, 1].
    """
    pixels = checked_numbers(technique, images, "images", shape).float().cpu()
    low, high = (float(value) for value in torch.aminmax(pixels))
    if low < 0 or high > 1:
        did = f"returned pixels from {low:.3g} to {high:.3g}"
        raise technique_error(technique, did, expected="[0, 1]")
    return pixels


def _strange(value: Tensor) -> str:
    """What keeps a tensor from being an array of real numbers; empty where nothing does."""
    if value.is_complex() or value.is_quantized:
        return str(value.dtype)
    if value.is_nested or value.is_meta:
        return "a nested tensor" if value.is_nested else "the meta device"
    return "" if value.layout is torch.strided else str(value.layout)
