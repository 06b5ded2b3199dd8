"""Deconvnet: the gradient with every negative value removed at each ReLU."""

from __future__ import annotations

from torch import Tensor

from timmscope import HookedModel, Objective
from timmscope_attribution.rectifiers import RectifierTechnique
from timmscope_registry.hooks import deconvnet


class Deconvnet(RectifierTechnique):
    """Deconvnet passes only positive gradients back through each ReLU.

    `g_in = g_out · 1[g_out > 0]` at every ReLU and ReLU6, whether the unit was active or not;
    elsewhere the gradient `∂S/∂I` as usual. The map has the colours reduced to one value per pixel.
    A model with neither activation is refused, because the rule would change nothing.

    Paper:
        Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014,
        arXiv:1311.2901.

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
        return self.gradient(model, images, objective, deconvnet)
