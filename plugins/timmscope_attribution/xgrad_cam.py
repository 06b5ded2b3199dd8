"""XGrad-CAM: class activation maps weighted by gradients averaged by activation."""

from __future__ import annotations

import torch
from torch import Tensor

from timmscope import CamTechnique


class XGradCAM(CamTechnique):
    """XGrad-CAM weighs each channel by its gradient averaged with the activation as weights.

    `ReLU(Σ_k w_k · A_k)` with `w_k = Σ_ij g_kij · A_kij / Σ_ij A_kij`, the activation A of the
    layer and `g = ∂S/∂A`. In a network of ReLUs the map without the final ReLU sums to the score
    minus its biases (conservation). A channel that sums to zero gets no weight. Where activations
    have both signs, channels that nearly cancel get large weights.

    Paper:
        Fu, Hu, Dong, Guo, Gao & Li, "Axiom-based Grad-CAM: Towards Accurate Visualization and
        Explanation of CNNs", BMVC 2020, arXiv:2008.02312.

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
        """`Σ_k w_k · A_k`."""
        total = cells.sum((2, 3))
        weights = torch.where(total != 0, (slopes * cells).sum((2, 3)) / total, 0)
        return torch.einsum("bk,bkhw->bhw", weights, cells)
