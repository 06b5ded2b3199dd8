"""Guided backpropagation."""

from __future__ import annotations

from torch import Tensor

from timmscope import HookedModel, Objective
from timmscope_attribution.rectifiers import RectifierTechnique
from timmscope_registry.hooks import guided


class GuidedBackprop(RectifierTechnique):
    """Guided backpropagation (Springenberg et al., ICLR workshop 2015).

    The gradient of the score, where each ReLU passes back only what is positive and arrived at an
    active unit: `g_in = g_out · 1[x > 0] · 1[g_out > 0]`. The rule acts on the autograd graph, so
    functions, methods, in-place and reused ReLUs all count; ReLU6 likewise. A model with neither is
    refused. It makes sharp pictures of what a unit sees, but hardly depends on the class (Nie et
    al., 2018): for a class, put it beside saliency or Grad-CAM.
    """

    def attribute(
        self, model: HookedModel, images: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps `(B, H, W)`, scores `(B,)` and pixels `(B, 3, H, W)`.

        Raises:
            TechniqueError: the way back has no ReLU, or activations that the rule is not made for.
        """
        return self.gradient(model, images, objective, guided)
