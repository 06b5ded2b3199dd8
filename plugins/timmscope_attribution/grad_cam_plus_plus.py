"""Grad-CAM++: weights from the gradient's higher powers."""

from __future__ import annotations

import torch
from torch import Tensor

from timmscope import CamTechnique


class GradCAMPlusPlus(CamTechnique):
    """Grad-CAM++ (Chattopadhay et al., WACV 2018): several instances of a class count alike.

    `ReLU(Σ_k Σ_ij α_kij · ReLU(g_kij) · A_k)` with `α = g² / (2g² + ΣA_k · g³)`, equation 19 of the
    paper for `exp(S)`; its common factor `exp(S)` is left out. Like the paper it supposes that
    activations are not negative, as after a ReLU; where a unit's sum is, α may grow without bound.
    """

    def weigh(self, cells: Tensor, slopes: Tensor) -> Tensor:
        """`Σ_k Σ_ij α · ReLU(g) · A_k`."""
        total = cells.sum((2, 3), keepdim=True)
        # g² cancels. The paper leaves 0/0 open; a cell without gradient has no weight.
        weights = slopes.clamp(min=0) / (2 + total * slopes)
        weights = torch.where(slopes > 0, weights, 0).sum((2, 3))
        return torch.einsum("bk,bkhw->bhw", weights, cells)
