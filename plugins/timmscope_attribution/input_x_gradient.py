"""Input × gradient: each pixel's value times the objective's gradient there."""

from __future__ import annotations

from torch import Tensor

from timmscope import AttributionTechnique, HookedModel, Objective
from timmscope_attribution.colours import Reduction, reduce_colours


class InputXGradient(AttributionTechnique):
    """Input × gradient multiplies each pixel by the gradient of the objective there.

    `Σ_c I_c · ∂S/∂I_c`, the first-order contribution of a pixel to the objective S. I is in pixel
    units [0, 1], so black pixels get 0. Cost: one forward and one backward pass.

    Paper:
        Shrikumar, Greenside, Shcherbina & Kundaje, "Not Just a Black Box: Learning Important
        Features Through Propagating Activation Differences", 2016, arXiv:1605.01713.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: the objective does not fit the model.
        ParameterError: a parameter or `batch_size` is out of range.
        TechniqueError: the map is zero everywhere or not finite.
    """

    reduce: Reduction = "sum"
    """How the three colours become one value: the signed sum, the largest magnitude, the length."""

    def attribute(
        self, model: HookedModel, images: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps `(B, H, W)`, scores `(B,)` and pixels `(B, 3, H, W)`."""
        score, gradient = model.gradient(images, objective)
        pixels = images * gradient
        return reduce_colours(pixels, self.reduce), score, pixels

    def why_zero(self) -> str:
        """The pixels are black, or there is no gradient."""
        return "the image is black, which multiplies to 0, or the score does not change"

    def is_signed(self) -> bool:
        """The sum has a sign."""
        return self.reduce == "sum"
