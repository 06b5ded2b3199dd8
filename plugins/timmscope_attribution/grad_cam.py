"""Grad-CAM: class activation maps weighted by gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from timmscope import CamTechnique


class GradCAM(CamTechnique):
    """Grad-CAM weighs each channel of a layer by its mean gradient.

    `ReLU(Σ_k mean_ij(g_kij) · A_k)` with the activation A of the layer and `g = ∂S/∂A`, over its
    grid in any layout; prefix tokens are left out. S is the objective, for a class its logit before
    the softmax. The graph starts at the layer. Cost: one forward pass, and a backward pass from the
    output to the layer.

    Paper:
        Selvaraju, Cogswell, Das, Vedantam, Parikh & Batra, "Grad-CAM: Visual Explanations from Deep
        Networks via Gradient-based Localization", ICCV 2017, arXiv:1610.02391.

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
        """`Σ_k mean(g_k) · A_k`."""
        return torch.einsum("bk,bkhw->bhw", slopes.mean((2, 3)), cells)
