"""`CamTechnique` is the base class of class activation maps from a layer's activation and gradient.

All these maps use the same pair (A, g) and differ in one formula, which a subclass implements.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from timmscope.models import HookedModel
from timmscope.objectives import Objective
from timmscope.techniques.attribution import AttributionTechnique, Outcome
from timmscope.techniques.default_layer import default_layer
from timmscope.techniques.names import LayerName
from timmscope.techniques.shared_gradients import LayerView, layer_view
from timmscope_registry import TechniqueError
from timmscope_registry.hooks import Layer


class CamTechnique(AttributionTechnique):
    """Base class of maps over a layer's grid from its activation A and the gradient g = ∂S/∂A.

    The graph starts at the layer, so the cost is one forward pass and a backward pass through the
    later layers. In `compare`, the maps of all techniques and layers share these passes.
    """

    layer: LayerName | None = None
    """Layer to map; by default the last one whose grid the objective depends on."""
    relu: bool = True
    """Keep only evidence for the objective."""

    @abstractmethod
    def weigh(self, cells: Tensor, slopes: Tensor) -> Tensor:
        """Return maps `(B, h, w)`, before any ReLU, from A and g.

        Args:
            cells: A, `(B, C, h, w)`, float32 or float64, without prefix tokens.
            slopes: g, likewise; not zero everywhere.
        """

    def attribute(self, model: HookedModel, images: Tensor, objective: Objective) -> Outcome:
        """Return maps `(B, h, w)` and scores `(B,)`.

        Raises:
            LayerNotFound: the model has no such layer.
            TechniqueError: the layer has no grid, or the objective does not depend on its grid.
        """
        layer = self.mapped_layer(model, objective)
        view = layer_view(model, images, objective, layer.name)
        if view is None:
            raise self.unsuitable(model, objective, "does not contribute to it")
        cells, slopes = self.spatial_pair(model, objective, layer, view)
        maps = self.weigh(cells, slopes)
        return (maps.relu() if self.relu else maps), view.score

    def why_zero(self) -> str:
        """Return the reason; after the ReLU, it is usually that no value was positive."""
        if self.relu:
            return "all evidence at the layer is against the objective; relu=False shows it"
        return super().why_zero()

    def is_signed(self) -> bool:
        """Return whether maps are signed: not after the ReLU, which removes negative evidence."""
        return not self.relu

    def shared_layers(self, model: HookedModel, objective: Objective) -> tuple[str, ...]:
        """Return the mapped layer."""
        return (self.mapped_layer(model, objective).name,)

    def mapped_layer(self, model: HookedModel, objective: Objective) -> Layer:
        """Return the layer given by the parameter `layer`, or the default layer.

        Raises:
            LayerNotFound: the model has no such layer.
            TechniqueError: it has no grid.
        """
        layer = model.layers[self.layer or default_layer(model, objective)]
        if layer.grid is None:
            raise self.unsuitable(model, objective, "has no grid")
        return layer

    def spatial_pair(
        self, model: HookedModel, objective: Objective, layer: Layer, view: LayerView
    ) -> tuple[Tensor, Tensor]:
        """Return A and g as `(B, C, h, w)`, in float32 at least.

        Raises:
            TechniqueError: the gradient on the grid is zero everywhere.
        """
        cells, slopes = layer.spatial(view.activation), layer.spatial(view.gradient)
        if not int(torch.count_nonzero(slopes)):  # `any` takes forty times as long
            why = "gets no gradient on its grid"
            if bool(view.gradient.any()):
                why = f"gets a gradient only at its {layer.prefix_tokens} prefix token(s)"
            raise self.unsuitable(model, objective, why)
        if cells.dtype != torch.float64:
            cells, slopes = cells.float(), slopes.float()
        return cells, slopes

    def unsuitable(self, model: HookedModel, objective: Objective, why: str) -> TechniqueError:
        """Return the error that says why a layer cannot be mapped, and which layer can."""
        instead = default_layer(model, objective)
        return TechniqueError(
            f"{objective} cannot be mapped at layer {self.layer or instead!r}: it {why}"
            + (f"; use layer={instead!r}" if self.layer else "")
        )
