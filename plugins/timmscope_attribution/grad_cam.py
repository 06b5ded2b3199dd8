"""Gradient-weighted class activation maps."""

from __future__ import annotations

import torch
from torch import Tensor

from timmscope import (
    AttributionTechnique,
    HookedModel,
    LayerName,
    Objective,
    ObjectiveError,
    TechniqueError,
)
from timmscope_attribution.default_layer import default_layer


class GradCAM(AttributionTechnique):
    """Grad-CAM (Selvaraju et al., ICCV 2017): channels weighted by their mean gradient.

    `ReLU(Σ_k mean_ij(∂S/∂A_kij) · A_k)` over a layer's grid, whatever its layout; prefix tokens
    take no part. S is the objective itself, for a class its logit before the softmax. The graph
    starts at the layer: the cost is one forward and the backward of what follows.
    """

    layer: LayerName | None = None
    """Layer to weigh; by default the last one whose grid the objective still depends on."""
    relu: bool = True
    """Keep only evidence for the objective."""

    def attribute(
        self, model: HookedModel, images: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor]:
        """Maps `(B, h, w)` and scores `(B,)`.

        Raises:
            LayerNotFound: there is no such layer.
            TechniqueError: the layer has no grid, or its grid has no part in the objective.
        """
        layer = model.layers[self.layer or default_layer(model, objective)]
        if layer.grid is None:
            raise self._unsuitable(model, objective, "has no grid and so no map")
        try:
            score, activation, gradient = model.layer_gradient(images, objective, layer.name)
        except ObjectiveError:
            raise self._unsuitable(model, objective, "has no part in it") from None
        cells, slopes = layer.spatial(activation), layer.spatial(gradient)
        if not bool(slopes.any()):
            where = "gets no gradient on its grid"
            if bool(gradient.any()):
                where = f"gets a gradient at its {layer.prefix_tokens} prefix token(s) alone"
            raise self._unsuitable(model, objective, where)
        if cells.dtype != torch.float64:
            cells, slopes = cells.float(), slopes.float()
        maps = torch.einsum("bk,bkhw->bhw", slopes.mean((2, 3)), cells)
        return (maps.relu() if self.relu else maps), score

    def why_zero(self) -> str:
        """After the ReLU, the usual reason is that nothing was positive."""
        if self.relu:
            return "all evidence at the layer speaks against the objective: see it with relu=False"
        return super().why_zero()

    def _unsuitable(self, model: HookedModel, objective: Objective, why: str) -> TechniqueError:
        instead = default_layer(model, objective)
        return TechniqueError(
            f"{objective} cannot be mapped at layer {self.layer or instead!r}: it {why}"
            + (f"; use layer={instead!r}" if self.layer else "")
        )
