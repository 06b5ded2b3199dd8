"""Deconvnet."""

from __future__ import annotations

from torch import Tensor

from timmscope import HookedModel, Objective
from timmscope_attribution.rectifiers import RectifierTechnique
from timmscope_registry.hooks import deconvnet


class Deconvnet(RectifierTechnique):
    """Deconvnet (Zeiler & Fergus, ECCV 2014): the gradient rectified on its way back.

    Each ReLU passes back what is positive, whether its unit was active or not:
    `g_in = g_out · 1[g_out > 0]`. ReLU6 likewise; a model with neither is refused.
    """

    def attribute(
        self, model: HookedModel, images: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps `(B, H, W)`, scores `(B,)` and pixels `(B, 3, H, W)`.

        Raises:
            TechniqueError: the way back has no ReLU, or activations that the rule is not made for.
        """
        return self.gradient(model, images, objective, deconvnet)
