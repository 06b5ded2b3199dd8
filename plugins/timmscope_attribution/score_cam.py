"""Score-CAM: channels weighted by the score of what they leave visible."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from timmscope import (
    AttributionTechnique,
    HookedModel,
    LayerName,
    Objective,
    baseline_images,
    perturbed_scores,
)
from timmscope_attribution.grid_layer import activations, grid_layer


class ScoreCAM(AttributionTechnique):
    """Score-CAM (Wang et al., CVPR workshops 2020): `ReLU(Σ_k softmax_k(S(I ⊙ H_k)) · A_k)`.

    H_k is channel A_k enlarged bilinearly to the image and stretched to [0, 1]; what it hides takes
    the model's mean colour. The paper subtracts the score of a baseline image inside the softmax,
    which changes nothing. A constant channel hides everything. No gradient: one forward a channel.
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
            TechniqueError: the layer has no grid, or comes after the objective.
        """
        layer = grid_layer(model, objective, self.layer)
        cells, scores = activations(model, images, objective, layer)
        hidden = baseline_images(model, images, "mean")
        weights = torch.stack(
            [
                self._scores(model, image, cover, maps, objective.rows(index, index + 1))
                for index, (image, cover, maps) in enumerate(
                    zip(images, hidden, cells, strict=True)
                )
            ]
        ).softmax(1)
        maps = torch.einsum("bk,bkhw->bhw", weights.to(cells), cells)
        return (maps.relu() if self.relu else maps), scores

    def is_signed(self) -> bool:
        """Signed unless the ReLU takes what speaks against the objective away."""
        return not self.relu

    def why_zero(self) -> str:
        """After the ReLU, the activations themselves were not positive."""
        if self.relu:
            return "the weighted activations are nowhere positive: see them with relu=False"
        return super().why_zero()

    def _scores(
        self, model: HookedModel, image: Tensor, cover: Tensor, maps: Tensor, objective: Objective
    ) -> Tensor:
        """Score of the image behind each channel, `(C,)`."""
        size = (image.shape[1], image.shape[2])

        def make(start: int, stop: int) -> Tensor:
            masks = functional.interpolate(maps[start:stop, None], size, mode="bilinear")
            low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
            span = high - low
            masks = torch.where(span > 0, (masks - low) / span, torch.zeros_like(masks))
            return torch.lerp(cover, image, masks.to(image))

        count = len(maps)
        return perturbed_scores(model, image, objective, count, make, description="masking")
