"""Guided backpropagation: the gradient through active units only, without negative values."""

from __future__ import annotations

from torch import Tensor

from timmscope import HookedModel, Objective
from timmscope_attribution.rectifiers import RectifierTechnique
from timmscope_registry.hooks import guided


class GuidedBackprop(RectifierTechnique):
    """Guided backpropagation passes only positive gradients back, and only through active units.

    `g_in = g_out · 1[x > 0] · 1[g_out > 0]` at every ReLU, and with `1[0 < x < 6]` at every ReLU6;
    elsewhere the gradient `∂S/∂I` as usual. The rule acts on the autograd graph, so it covers
    modules, functions, methods, in-place and reused ReLUs. A model with neither activation is
    refused, because the rule would change nothing. The map shows sharply what a unit responds to,
    but hardly depends on the class (Nie, Zhang & Patel, ICML 2018): for a class, compare it with
    saliency or Grad-CAM.

    Paper:
        Springenberg, Dosovitskiy, Brox & Riedmiller, "Striving for Simplicity: The All
        Convolutional Net", ICLR workshop 2015, arXiv:1412.6806.

    Inherited parameters:
        reduce: how the three colours become one value: signed sum, largest magnitude or Euclidean
            length.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: the objective does not fit the model.
        ParameterError: a parameter or `batch_size` is out of range.
        TechniqueError: the backward pass has no ReLU or ReLU6, or other activations than the rule
            covers, or no positive gradient reaches the image.
    """

    def attribute(
        self, model: HookedModel, images: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps `(B, H, W)`, scores `(B,)` and pixels `(B, 3, H, W)`.

        Raises:
            TechniqueError: the backward pass has no ReLU, or other activations than the rule
                covers.
        """
        return self.gradient(model, images, objective, guided)
