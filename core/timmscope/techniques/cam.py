"""`CamTechnique`: class activation maps from a layer's activation and gradient.

All of them read the same pair (A, g) and differ in one formula, so that is all a subclass writes.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from timmscope.models import HookedModel
from timmscope.objectives import Objective
from timmscope.techniques.attribution import AttributionTechnique, Outcome
from timmscope.techniques.base import LayerName
from timmscope.techniques.default_layer import default_layer
from timmscope.techniques.shared_gradients import LayerView, layer_view
from timmscope_registry import TechniqueError
from timmscope_registry.hooks import Layer


class CamTechnique(AttributionTechnique):
    """Base of maps over a layer's grid from its activation A and the gradient g = ∂S/∂A.

    The graph starts at the layer: the cost is one forward and the backward of what follows. Side
    by side, in `compare`, all such maps of all layers share these.
    """

    layer: LayerName | None = None
    """Layer to weigh; by default the last one whose grid the objective still depends on."""
    relu: bool = True
    """Keep only evidence for the objective."""

    @abstractmethod
    def weigh(self, cells: Tensor, slopes: Tensor) -> Tensor:
        """Map `(B, h, w)`, before any ReLU, from A and g.

        Args:
            cells: A, `(B, C, h, w)`, float32 or float64, without prefix tokens.
            slopes: g, likewise; not zero everywhere for any image of the batch.
        """

    def attribute(self, model: HookedModel, images: Tensor, objective: Objective) -> Outcome:
        """Maps `(B, h, w)` and scores `(B,)`.

        Raises:
            LayerNotFound: there is no such layer.
            TechniqueError: the layer has no grid, or its grid has no part in the objective.
        """
        layer = self.mapped_layer(model, objective)
        view = layer_view(model, images, objective, layer.name)
        if view is None:
            raise self.unsuitable(model, objective, "has no part in it")
        cells, slopes = self.spatial_pair(model, objective, layer, view)
        maps = self.weigh(cells, slopes)
        return (maps.relu() if self.relu else maps), view.score

    def why_zero(self) -> str:
        """After the ReLU, the usual reason is that nothing was positive."""
        if self.relu:
            return "all evidence at the layer speaks against the objective: see it with relu=False"
        return super().why_zero()

    def is_signed(self) -> bool:
        """Signed unless the ReLU takes what speaks against the objective away."""
        return not self.relu

    def shared_layers(self, model: HookedModel, objective: Objective) -> tuple[str, ...]:
        """The mapped layer."""
        return (self.mapped_layer(model, objective).name,)

    def mapped_layer(self, model: HookedModel, objective: Objective) -> Layer:
        """The layer asked for, or the default one.

        Raises:
            LayerNotFound: there is no such layer.
            TechniqueError: it has no grid.
        """
        layer = model.layers[self.layer or default_layer(model, objective)]
        if layer.grid is None:
            raise self.unsuitable(model, objective, "has no grid and so no map")
        return layer

    def spatial_pair(
        self, model: HookedModel, objective: Objective, layer: Layer, view: LayerView
    ) -> tuple[Tensor, Tensor]:
        """A and g as `(B, C, h, w)`, in float32 at least.

        Raises:
            TechniqueError: the gradient on the grid is zero everywhere.
        """
        cells, slopes = layer.spatial(view.activation), layer.spatial(view.gradient)
        if not int(torch.count_nonzero(slopes)):  # `any` takes forty times as long
            where = "gets no gradient on its grid"
            if bool(view.gradient.any()):
                where = f"gets a gradient at its {layer.prefix_tokens} prefix token(s) alone"
            raise self.unsuitable(model, objective, where)
        if cells.dtype != torch.float64:
            cells, slopes = cells.float(), slopes.float()
        return cells, slopes

    def unsuitable(self, model: HookedModel, objective: Objective, why: str) -> TechniqueError:
        """The error that says why a layer cannot be mapped, and which one can."""
        instead = default_layer(model, objective)
        return TechniqueError(
            f"{objective} cannot be mapped at layer {self.layer or instead!r}: it {why}"
            + (f"; use layer={instead!r}" if self.layer else "")
        )
