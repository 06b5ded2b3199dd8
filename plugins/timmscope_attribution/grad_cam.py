"""Gradient-weighted class activation maps."""

from __future__ import annotations

import torch
from torch import Tensor

from timmscope import CamTechnique


class GradCAM(CamTechnique):
    """Grad-CAM (Selvaraju et al., ICCV 2017): channels weighted by their mean gradient.

    `ReLU(Σ_k mean_ij(∂S/∂A_kij) · A_k)` over a layer's grid, whatever its layout; prefix tokens
    take no part. S is the objective itself, for a class its logit before the softmax. The graph
    starts at the layer: the cost is one forward and the backward of what follows.
    """

    def weigh(self, cells: Tensor, slopes: Tensor) -> Tensor:
        """`Σ_k mean(g_k) · A_k`."""
        return torch.einsum("bk,bkhw->bhw", slopes.mean((2, 3)), cells)
