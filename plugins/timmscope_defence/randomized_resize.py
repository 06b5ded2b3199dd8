"""Randomised resizing and padding before the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from timmscope import DefenceTechnique


class RandomizedResize(DefenceTechnique):
    """Randomised resizing gives an image a random size and a random place on a black ground.

    `x' = pad(scale(x, u · H, u · W))`: the image `(H, W)` is scaled by u, uniform on [`smallest`,
    1], with bilinear interpolation, and placed uniformly on a black image `(H, W)`. Each forward of
    an image in a call meets the same draw, so that a map explains one function; attacks average
    their gradients over draws (`draws`). The paper enlarges its inputs from 299 to at most 331
    pixels; here the input keeps its size, so that a model's layers keep their grids. With
    `smallest` of 299/331 the sizes have the paper's ratio. Cost: nearly nothing.

    Paper:
        Xie, Wang, Zhang, Ren & Yuille, "Mitigating Adversarial Effects Through Randomization",
        ICLR 2018, arXiv:1711.01991.

    Raises:
        ImageError: the images are not in [0, 1].
        ObjectiveError: the model has no class of a label's name or index, or has no classes.
        ParameterError: a parameter or `batch_size` is out of range.
        TechniqueError: the images are changed in shape or leave [0, 1].
    """

    random = True

    smallest: float = Field(default=0.9, gt=0, le=1)
    """Smallest side after scaling, as a share of the image's side."""

    def transform(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Scale and place each image with numbers of its own generator."""
        placed = [
            self._placed(image[None], torch.rand(3, generator=generator).tolist())
            for image, generator in zip(images, generators, strict=True)
        ]
        return torch.cat(placed)

    def _placed(self, image: Tensor, numbers: Sequence[float]) -> Tensor:
        """Return an image `(1, C, H, W)` at the size and place of three numbers in [0, 1)."""
        height, width = image.shape[2:]
        share = self.smallest + (1 - self.smallest) * numbers[0]
        rows, columns = (-int(-side * share // 1) for side in (height, width))
        scaled = functional.interpolate(image, (rows, columns), mode="bilinear")
        top, left = int(numbers[1] * (height - rows + 1)), int(numbers[2] * (width - columns + 1))
        margins = (left, width - columns - left, top, height - rows - top)
        return functional.pad(scaled, margins)
