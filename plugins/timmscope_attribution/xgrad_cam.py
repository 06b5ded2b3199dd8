"""XGrad-CAM: gradients averaged by activation."""

from __future__ import annotations

import torch
from torch import Tensor

from timmscope import CamTechnique


class XGradCAM(CamTechnique):
    """XGrad-CAM (Fu et al., BMVC 2020): channels weighted by their activation-weighted gradient.

    `ReLU(Σ_k w_k · A_k)` with `w_k = Σ_ij g_kij · A_kij / ΣA_k`: for a network of ReLUs the map
    then sums to the score up to its biases (conservation). A unit that sums to zero has no weight;
    where activations have both signs, weights of units that nearly cancel are large.
    """

    def weigh(self, cells: Tensor, slopes: Tensor) -> Tensor:
        """`Σ_k w_k · A_k`."""
        total = cells.sum((2, 3))
        weights = torch.where(total != 0, (slopes * cells).sum((2, 3)) / total, 0)
        return torch.einsum("bk,bkhw->bhw", weights, cells)
