"""Splits images into those that something is fitted on and those that it is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from timmscope.techniques.image_set import ImageSet
from timmscope_registry import ParameterError

T = TypeVar("T")


def share_of(held_out: Any) -> float | None:
    """Return the share of images to hold out; None if it is a set of images.

    Raises:
        ParameterError: it is a number, and no share.
    """
    if isinstance(held_out, bool) or not isinstance(held_out, int | float):
        return None
    if not 0 < held_out < 1:
        raise ParameterError(
            f"held_out is {held_out:g}: expected a share between 0 and 1, or images",
            parameter="held_out",
        )
    return float(held_out)


def shuffled(items: Sequence[T], generator: torch.Generator) -> list[T]:
    """Return items in a random order."""
    return [items[each] for each in torch.randperm(len(items), generator=generator).tolist()]


def split_by_share(
    images: ImageSet, numbers: Sequence[int], share: float, by: str, generator: torch.Generator
) -> tuple[list[int], list[int]]:
    """Split images at random.

    Args:
        images: the images.
        numbers: those that can be read.
        share: share of them to hold out; at least one image or label is.
        by: `image`, or `label` to hold out whole labels.
        generator: source of random numbers.

    Returns:
        Numbers of the images to fit on and of those held out, each in a random order.

    Raises:
        ParameterError: there are no labels, or no image is left to fit on.
    """
    groups = _groups(images, numbers, by)
    order = shuffled(groups, generator)
    held: list[int] = []
    while order and (not held or len(held) + len(order[0]) / 2 <= share * len(numbers)):
        held += order.pop(0)
    fitted = [number for group in order for number in group]
    if not fitted:
        many = f"{len(groups)} {by}{'s' if len(groups) > 1 else ''}"
        raise ParameterError(
            f"held_out={share:g} of {many} leaves none to fit on: give more images, or another "
            "share",
            parameter="held_out",
        )
    return shuffled(fitted, generator), shuffled(held, generator)


def _groups(images: ImageSet, numbers: Sequence[int], by: str) -> list[list[int]]:
    """Return the images that are held out together."""
    if by == "image":
        return [[number] for number in numbers]
    labels = images.labels
    if labels is None:
        raise ParameterError(
            "split=label needs labels, but the images have none: put them into one folder per "
            "label, or split by image",
            parameter="split",
        )
    groups: dict[str | None, list[int]] = {}
    for number in numbers:
        groups.setdefault(labels[number], []).append(number)
    return list(groups.values())
