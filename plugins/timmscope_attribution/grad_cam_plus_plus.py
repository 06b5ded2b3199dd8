"""Grad-CAM++: class activation maps weighted by higher powers of the gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from timmscope import CamTechnique


class GradCAMPlusPlus(CamTechnique):
    """Grad-CAM++ weighs channels so that several instances of a class count equally.

    `ReLU(Σ_k Σ_ij α_kij · ReLU(g_kij) · A_k)` with the activation A of the layer, `g = ∂S/∂A` and
    `α = g² / (2g² + ΣA_k · g³)`: equation 19 of the paper for `exp(S)`, without its common factor
    `exp(S)`. As in the paper, activations should not be negative, as after a ReLU: where the sum
    over a channel is negative, α has no upper bound.

    Paper:
        Chattopadhay, Sarkar, Howlader & Balasubramanian, "Grad-CAM++: Generalized Gradient-based
        Visual Explanations for Deep Convolutional Networks", WACV 2018, arXiv:1710.11063.

    Inherited parameters:
        layer: layer to weigh; by default the last one whose grid the objective still depends on.
        relu: set negative values to 0, so that only evidence for the objective is shown.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: the objective does not fit the model.
        LayerNotFound: there is no such layer.
        ParameterError: `batch_size` is less than 1.
        TechniqueError: the layer has no grid, the objective does not depend on its grid, or the map
            is zero everywhere, the same in all cells or not finite.
    """

    def weigh(self, cells: Tensor, slopes: Tensor) -> Tensor:
        """`Σ_k Σ_ij α · ReLU(g) · A_k`."""
        total = cells.sum((2, 3), keepdim=True)
        # g² cancels. The paper does not define 0/0; here a cell without gradient has no weight.
        weights = slopes.clamp(min=0) / (2 + total * slopes)
        weights = torch.where(slopes > 0, weights, 0).sum((2, 3))
        return torch.einsum("bk,bkhw->bhw", weights, cells)
