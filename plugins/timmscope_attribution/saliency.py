"""Gradient saliency."""

from __future__ import annotations

from torch import Tensor

from timmscope import AttributionTechnique, HookedModel, Objective


class Saliency(AttributionTechnique):
    """Saliency (Simonyan et al., 2014): `max_c |∂S/∂I_c|`, the largest gradient of a pixel.

    S is the objective itself, for a class its logit before the softmax; the gradient is in pixel
    units [0, 1]. One forward and one backward.
    """

    def attribute(
        self, model: HookedModel, images: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor]:
        """Maps `(B, H, W)` and scores `(B,)`."""
        score, gradient = model.gradient(images, objective)
        return gradient.abs().amax(1), score

    def why_zero(self) -> str:
        """A gradient of 0 everywhere has one reason."""
        return (
            "the objective does not change around the image, as with a saturated unit "
            "or an untrained classifier of zeros"
        )
