"""Gradient saliency: the magnitude of the objective's gradient at every pixel."""

from __future__ import annotations

from torch import Tensor

from timmscope import AttributionTechnique, HookedModel, Objective


class Saliency(AttributionTechnique):
    """Saliency is the largest absolute gradient over the colours of a pixel.

    `max_c |∂S/∂I_c|`, where S is the objective (for a class its logit before the softmax) and I the
    image in pixel units [0, 1]. Cost: one forward and one backward pass.

    Paper:
        Simonyan, Vedaldi & Zisserman, "Deep Inside Convolutional Networks: Visualising Image
        Classification Models and Saliency Maps", ICLR workshop 2014, arXiv:1312.6034.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: the objective does not fit the model.
        ParameterError: `batch_size` is less than 1.
        TechniqueError: the gradient is zero everywhere or not finite.
    """

    def attribute(
        self, model: HookedModel, images: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor]:
        """Maps `(B, H, W)` and scores `(B,)`."""
        score, gradient = model.gradient(images, objective)
        return gradient.abs().amax(1), score

    def why_zero(self) -> str:
        """The objective is constant around the image."""
        return (
            "the objective does not change around the image, as with a saturated unit "
            "or an untrained classifier of zeros"
        )
