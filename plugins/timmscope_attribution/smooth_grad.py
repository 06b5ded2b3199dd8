"""SmoothGrad: the gradient averaged over noisy copies of the image."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    AttributionTechnique,
    HookedModel,
    Objective,
    TechniqueError,
    image_generators,
    images_per_pass,
    noise_like,
)
from timmscope_attribution.colours import Reduction, reduce_colours


class SmoothGrad(AttributionTechnique):
    """SmoothGrad averages the gradient over copies of the image with added noise.

    `1/n · Σ ∂S/∂I (I + ε)` with `ε ~ N(0, σ²)` and `σ = noise · (max I − min I)`. The signed
    gradient is averaged before colours are reduced. The noise of each image is drawn from the seed.
    As many copies as fit in memory go through the model at once; gradients are summed, never kept.

    Paper:
        Smilkov, Thorat, Kim, Viégas & Wattenberg, "SmoothGrad: removing noise by adding noise",
        2017, arXiv:1706.03825.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: the objective does not fit the model.
        ParameterError: a parameter or `batch_size` is out of range.
        TechniqueError: an image has one colour only, so that the noise has no scale, or the map is
            zero everywhere or not finite.
    """

    samples: int = Field(default=50, ge=1)
    """Number of noisy copies of each image."""
    noise: float = Field(default=0.15, gt=0, le=1)
    """Standard deviation of the noise, as a share of the image's range of values, max − min."""
    reduce: Reduction = "abs-max"
    """How the three colours become one value: the signed sum, the largest magnitude, the length."""

    def attribute(
        self, model: HookedModel, images: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps `(B, H, W)`, scores `(B,)` and pixels `(B, 3, H, W)`.

        Raises:
            TechniqueError: an image is constant, so that the noise has no scale.
        """
        spread = images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True)
        if not bool((spread > 0).all()):
            raise TechniqueError(
                "all values of an image are equal, and noise is a share of their range, so there "
                "would be none; use saliency"
            )
        generators = image_generators(len(images))
        total = torch.zeros_like(images)
        at_once = max(1, images_per_pass(model, images) // len(images))
        for start in self.track(range(0, self.samples, at_once)):
            count = min(at_once, self.samples - start)
            copies = [
                images + self.noise * spread * noise_like(images, generators=generators)
                for _ in range(count)
            ]
            gradient = model.gradient(torch.cat(copies), objective.repeated(count))[1]
            total += gradient.view(count, *images.shape).sum(0)
        pixels = total / self.samples
        with torch.no_grad():
            score = model.score(images, objective)
        return reduce_colours(pixels, self.reduce), score, pixels

    def why_zero(self) -> str:
        """The objective is constant around the image."""
        return (
            "the objective does not change around the image, as with a saturated unit "
            "or an untrained classifier of zeros"
        )

    def is_signed(self) -> bool:
        """The sum has a sign."""
        return self.reduce == "sum"
