"""Guided Grad-CAM: fine detail where the class is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from timmscope import HookedModel, LayerView, Objective, TechniqueError, UnsupportedModel
from timmscope_attribution.colours import Reduction, reduce_colours
from timmscope_attribution.grad_cam import GradCAM
from timmscope_attribution.rectifiers import INSTEAD
from timmscope_registry.hooks import guided


class GuidedGradCAM(GradCAM):
    """Guided Grad-CAM (Selvaraju et al., ICCV 2017): guided backpropagation ⊙ Grad-CAM.

    The guided gradient of the score at every pixel, times the Grad-CAM map brought to image size
    (bilinear). Both come from one forward. Models without ReLU or ReLU6 are refused.
    """

    reduce: Reduction = "abs-max"
    """How the three colours become one value: the signed sum, the largest magnitude, the length."""

    def attribute(
        self, model: HookedModel, images: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps `(B, H, W)`, scores `(B,)` and pixels `(B, 3, H, W)`.

        Raises:
            LayerNotFound: there is no such layer.
            TechniqueError: there is no ReLU on the way back, the layer has no grid, or its grid
                has no part in the objective.
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
            raise TechniqueError(f"{error}; {INSTEAD}") from None
        # The rule is off again, and the graph still there.
        slope = None
        if activation.requires_grad:
            (slope,) = torch.autograd.grad(score.sum(), activation, allow_unused=True)
        if slope is None:
            raise self.unsuitable(model, objective, "has no part in it")
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
        """None: its graph reaches back to the image."""
        return ()
