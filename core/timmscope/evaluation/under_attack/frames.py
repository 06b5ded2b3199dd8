"""Loads the images as each model takes them, and moves them from one model to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from timmscope.evaluation.under_attack.runs import Subject
from timmscope.techniques.image_set import ImageSet


class Frames:
    """The images of a set, resized and cropped for each of several models.

    Models of the same preprocessing share the images. Those of one chunk are kept in memory.

    Args:
        subjects: the models; the first is the main one.
        source: anything that `open_images` takes, opened, or a tensor.
        main: the images for the main model.
    """

    def __init__(self, subjects: Sequence[Subject], source: Any, main: ImageSet) -> None:
        self.main = main
        self._models = [subject.model for subject in subjects]
        self._sets: list[ImageSet] = [main]
        self._frame = [0]
        for model in self._models[1:]:
            same = [
                frame
                for frame, other in zip(self._frame, self._models, strict=False)
                if isinstance(source, Tensor) or other.preprocessing == model.preprocessing
            ]
            if not same:
                self._sets.append(ImageSet(model, source))
            self._frame.append(same[0] if same else len(self._sets) - 1)
        self._kept: dict[tuple[int, int], Tensor] = {}
        self._tensor = isinstance(source, Tensor)

    def fingerprint(self) -> str:
        """Return a digest of the images."""
        return self.main.fingerprint()

    def image(self, place: int, number: int) -> Tensor:
        """Return an image `(C, H, W)` for a model.

        Raises:
            ImageError: it cannot be read.
        """
        key = self._frame[place], number
        if key not in self._kept:
            self._kept[key] = self._sets[key[0]].load(number).image
        return self._kept[key]

    def images(self, place: int, numbers: Sequence[int]) -> Tensor:
        """Return images `(n, C, H, W)` for a model; if one is read, others leave the memory.

        Raises:
            ImageError: one cannot be read.
        """
        wanted = set(numbers)
        if any((self._frame[place], number) not in self._kept for number in wanted):
            self._kept = {key: image for key, image in self._kept.items() if key[1] in wanted}
        images = torch.stack([self.image(place, number) for number in numbers])
        return self.moved(images, 0, place) if self._tensor else images

    def moved(self, images: Tensor, source: int, target: int) -> Tensor:
        """Return images of a model for another, scaled only where their input sizes differ."""
        own, other = (self._models[place].input_size[1:] for place in (source, target))
        if own == other:
            return images
        sides = zip(images.shape[2:], own, other, strict=True)
        size = [round(side * new / old) for side, old, new in sides]
        scaled = functional.interpolate(images, size, mode="bilinear", antialias=True)
        return scaled.clamp(0, 1)
