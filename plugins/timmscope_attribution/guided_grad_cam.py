"""Guided Grad-CAM: guided backpropagation for detail, Grad-CAM for the place of the class."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from timmscope import HookedModel, LayerView, Objective, TechniqueError, UnsupportedModel
from timmscope_attribution.colours import Reduction, reduce_colours
from timmscope_attribution.grad_cam import GradCAM
from timmscope_attribution.rectifiers import ALTERNATIVES
from timmscope_registry.hooks import guided


class GuidedGradCAM(GradCAM):
    """Guided Grad-CAM multiplies guided backpropagation by the Grad-CAM map.

    `guided ⊙ upsample(ReLU(Σ_k mean_ij(g_kij) · A_k))`, where `guided` is the gradient of the
    objective in the image under the rule of guided backpropagation, A the activation of the layer,
    `g = ∂S/∂A`, and the map is brought to image size by bilinear interpolation. Both come from one
    forward pass. Models without ReLU or ReLU6 are refused.

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
        ParameterError: a parameter or `batch_size` is out of range.
        TechniqueError: the backward pass has no ReLU, the layer has no grid, the objective does not
            depend on its grid, or the map is zero everywhere or not finite.
    """

    reduce: Reduction = "abs-max"
    """How the three colours become one value: the signed sum, the largest magnitude, the length."""

    def attribute(
        self, model: HookedModel, images: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps `(B, H, W)`, scores `(B,)` and pixels `(B, 3, H, W)`.

        Raises:
            LayerNotFound: there is no such layer.
            TechniqueError: the backward pass has no ReLU, the layer has no grid, or the objective
                does not depend on its grid.
        """
        layer = self.mapped_layer(model, objective)
        leaf = images.detach().clone().requires_grad_()
        try:
            with (
                model.backward_rule(guided),
                model.record(*dict.fromkeys([layer.name, *objective.points])) as recording,
            ):
                model(leaf)
                score, activation = objective(recording), recording[layer.name]
                (fine,) = torch.autograd.grad(score.sum(), leaf, retain_graph=True)
        except UnsupportedModel as error:
            raise TechniqueError(f"{error}; {ALTERNATIVES}") from None
        # The rule is off again, and the graph is kept.
        slope = None
        if activation.requires_grad:
            (slope,) = torch.autograd.grad(score.sum(), activation, allow_unused=True)
        if slope is None:
            raise self.unsuitable(model, objective, "does not contribute to it")
        view = LayerView(score.detach(), activation.detach(), slope)
        coarse = self.weigh(*self.spatial_pair(model, objective, layer, view))
        coarse = coarse.relu() if self.relu else coarse
        size = (images.shape[2], images.shape[3])
        mask = functional.interpolate(coarse[:, None], size, mode="bilinear", align_corners=False)
        pixels = fine * mask
        return reduce_colours(pixels, self.reduce), view.score, pixels

    def is_signed(self) -> bool:
        """The sum has a sign."""
        return self.reduce == "sum"

    def shared_layers(self, model: HookedModel, objective: Objective) -> tuple[str, ...]:
        """None: its graph starts at the image, not at the layer."""
        return ()
