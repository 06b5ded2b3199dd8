"""SmoothGrad: the gradient averaged over noisy copies."""

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
    """SmoothGrad (Smilkov et al., 2017): the mean gradient of copies of the image under noise.

    `1/n · Σ ∂S/∂I (I + ε)`, `ε ~ N(0, σ²)`, the signed gradient, averaged before colours are
    reduced. Noise is drawn per image from the seed. As many copies go through at once as memory
    allows; they are summed, never kept.
    """

    samples: int = Field(default=50, ge=1)
    """Noisy copies of an image."""
    noise: float = Field(default=0.15, gt=0, le=1)
    """Standard deviation of the noise, as a share of the image's range of values, max − min."""
    reduce: Reduction = "abs-max"
    """How the three colours become one value: the signed sum, the largest magnitude, the length."""

    def attribute(
        self, model: HookedModel, images: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps `(B, H, W)`, scores `(B,)` and pixels `(B, 3, H, W)`.

        Raises:
            TechniqueError: an image is constant, so that no noise has a size.
        """
        spread = images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True)
        if not bool((spread > 0).all()):
            raise TechniqueError(
                "an image is the same everywhere, and noise is a share of its range of values: "
                "there would be none; use saliency"
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
        """A gradient of 0 at all copies."""
        return (
            "the objective does not change around the image, as with a saturated unit "
            "or an untrained classifier of zeros"
        )

    def is_signed(self) -> bool:
        """The sum has a sign."""
        return self.reduce == "sum"
