"""Gradients whose way back through rectifiers is changed: what guided maps have in common."""

from __future__ import annotations

from torch import Tensor

from timmscope import AttributionTechnique, HookedModel, Objective, TechniqueError, UnsupportedModel
from timmscope_attribution.colours import Reduction, reduce_colours
from timmscope_registry.hooks import BackwardRule

INSTEAD = "use saliency, smooth-grad or integrated-gradients"


class RectifierTechnique(AttributionTechnique):
    """Base of maps from one backward pass under another rule for ReLU and ReLU6."""

    reduce: Reduction = "abs-max"
    """How the three colours become one value: the signed sum, the largest magnitude, the length."""

    def gradient(
        self, model: HookedModel, images: Tensor, objective: Objective, rule: BackwardRule
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps `(B, H, W)`, scores `(B,)` and pixels `(B, 3, H, W)`.

        Raises:
            TechniqueError: the way back has no ReLU, or activations that the rule is not made for.
        """
        try:
            with model.backward_rule(rule):
                score, pixels = model.gradient(images, objective)
        except UnsupportedModel as error:
            raise TechniqueError(f"{error}; {INSTEAD}") from None
        return reduce_colours(pixels, self.reduce), score, pixels

    def why_zero(self) -> str:
        """The rule lets positive gradients pass alone."""
        return (
            "no positive gradient comes through the rectifiers, as for a class that the image "
            "speaks against; choose another objective, or use saliency"
        )

    def is_signed(self) -> bool:
        """The sum has a sign."""
        return self.reduce == "sum"
