"""The base of guided backpropagation and deconvnet: gradients with another rule at ReLUs."""

from __future__ import annotations

from torch import Tensor

from timmscope import AttributionTechnique, HookedModel, Objective, TechniqueError, UnsupportedModel
from timmscope_attribution.colours import Reduction, reduce_colours
from timmscope_registry.hooks import BackwardRule

ALTERNATIVES = "use saliency, smooth-grad or integrated-gradients"


class RectifierTechnique(AttributionTechnique):
    """Base of maps from one backward pass with a modified rule for ReLU and ReLU6."""

    reduce: Reduction = "abs-max"
    """How the three colours become one value: the signed sum, the largest magnitude, the length."""

    def gradient(
        self, model: HookedModel, images: Tensor, objective: Objective, rule: BackwardRule
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps `(B, H, W)`, scores `(B,)` and pixels `(B, 3, H, W)`.

        Raises:
            TechniqueError: the backward pass has no ReLU, or other activations than the rule
                covers.
        """
        try:
            with model.backward_rule(rule):
                score, pixels = model.gradient(images, objective)
        except UnsupportedModel as error:
            if model.is_function:  # the alternatives need a gradient as well
                raise
            raise TechniqueError(f"{error}; {ALTERNATIVES}") from None
        return reduce_colours(pixels, self.reduce), score, pixels

    def why_zero(self) -> str:
        """The rule passes positive gradients only."""
        return (
            "no positive gradient passes the rectifiers, as for a class that the image is evidence "
            "against; choose another objective, or use saliency"
        )

    def is_signed(self) -> bool:
        """The sum has a sign."""
        return self.reduce == "sum"
