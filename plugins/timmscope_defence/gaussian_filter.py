"""A Gaussian blur before the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from timmscope import DefenceTechnique
from timmscope_defence.windows import mirrored


class GaussianFilter(DefenceTechnique):
    """A Gaussian filter blurs an image, which removes changes of high frequency.

    `x' = g * x` with `g(d) ∝ exp(−d² / (2σ²))`, cut off beyond four σ, along columns and then
    along rows; images continue as their mirror beyond the edge. The gradient is exact. Cost: a few
    milliseconds per image of 224×224.

    Paper:
        Xu, Evans & Qi, "Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks",
        NDSS 2018, arXiv:1704.01155.

    Raises:
        ImageError: the images are not in [0, 1].
        ObjectiveError: the model has no class of a label's name or index, or has no classes.
        ParameterError: a parameter or `batch_size` is out of range.
        TechniqueError: the images are changed in shape or leave [0, 1].
        UnsupportedModel: the images are smaller than the filter.
    """

    sigma: float = Field(default=1.0, gt=0, le=32)
    """Standard deviation σ in pixels."""

    def transform(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Blur rows, then columns."""
        margin = int(4 * self.sigma + 0.5)
        places = torch.arange(-margin, margin + 1, dtype=torch.float64)
        kernel = torch.exp(-(places**2) / (2 * self.sigma**2))
        kernel = (kernel / kernel.sum()).to(images)
        channels = images.shape[1]
        wide = mirrored(images, margin, self.title())
        for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
            weight = kernel.view(shape).expand(channels, -1, -1, -1)
            wide = functional.conv2d(wide, weight, groups=channels)
        return wide.clamp(0, 1)
