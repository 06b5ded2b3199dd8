"""Input times gradient."""

from __future__ import annotations

from torch import Tensor

from timmscope import AttributionTechnique, HookedModel, Objective
from timmscope_attribution.colours import Reduction, reduce_colours


class InputXGradient(AttributionTechnique):
    """Input × gradient (Shrikumar et al., 2016): `Σ_c I_c · ∂S/∂I_c`.

    The first-order share of each pixel in the score. I is in pixel units [0, 1], so black is the
    colour that counts for nothing. One forward and one backward.
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
        """Black pixels, or no gradient."""
        return "the image is black, which counts for nothing here, or the score does not change"

    def is_signed(self) -> bool:
        """The sum has a sign."""
        return self.reduce == "sum"
