"""What a technique's method hands back, checked before anything is made of it.

Whatever is wrong with it is told as the technique's fault, with its plugin and version: the user of
someone else's plugin sees nothing but that line.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from timmscope.techniques.base import Technique, named
from timmscope_registry import TechniqueError

T = TypeVar("T")


def checked_type(technique: Technique, value: object, expected: type[T]) -> T:
    """The same value.

    Raises:
        TechniqueError: it is of another type.
    """
    if not isinstance(value, expected):
        raise TechniqueError(
            f"{named(technique)} returned {_brief(value)}; expected a {expected.__name__}"
        )
    return value


def checked_numbers(
    technique: Technique, value: object, what: str, shape: tuple[int | str, ...], advice: str = ""
) -> Tensor:
    """The same tensor, out of its graph.

    Args:
        technique: what returned it.
        value: what it returned.
        what: what that should be, in the plural.
        shape: the sizes expected; a name stands for any size but zero.
        advice: what may help against values that are not finite.

    Raises:
        TechniqueError: it is no tensor of finite real numbers of that shape.
    """
    who = named(technique)
    wanted = f"a tensor ({', '.join(map(str, shape))})"
    if not isinstance(value, Tensor):
        raise TechniqueError(f"{who} returned {_brief(value)} for {what}; expected {wanted}")
    if kind := _strange(value):
        raise TechniqueError(
            f"{who} returned {what} of {kind}; expected real numbers, none left out"
        )
    if value.ndim != len(shape) or not all(
        size > 0 if isinstance(wish, str) else size == wish
        for size, wish in zip(value.shape, shape, strict=True)
    ):
        raise TechniqueError(
            f"{who} returned {what} of shape {tuple(value.shape)}; expected {wanted}"
        )
    if not bool(torch.isfinite(value.float()).all()):  # results are float32
        raise TechniqueError(
            f"{who} returned NaN or infinite {what}" + (f": {advice}" if advice else "")
        )
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
        raise TechniqueError(
            f"{named(technique)} returned pixels from {low:.3g} to {high:.3g}; expected [0, 1]"
        )
    return pixels


def _strange(value: Tensor) -> str:
    """What keeps a tensor from being an array of real numbers; empty where nothing does."""
    if value.is_complex() or value.is_quantized:
        return str(value.dtype)
    if value.is_nested or value.is_meta:
        return "a nested tensor" if value.is_nested else "the meta device"
    return "" if value.layout is torch.strided else str(value.layout)


def _brief(value: object) -> str:
    return "nothing" if value is None else f"type {type(value).__name__}"
