"""Score-CAM: channels weighted by the score of the image that they mask."""

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
    image_rows,
    perturbed_scores,
)
from timmscope_attribution.grid_layer import activations, grid_layer


class ScoreCAM(AttributionTechnique):
    """Score-CAM weighs each channel by the score of the image masked with that channel.

    `ReLU(Σ_k softmax_k(S(I ⊙ H_k)) · A_k)`, where H_k is channel A_k of the layer, enlarged to the
    image by bilinear interpolation and scaled to [0, 1]. Hidden pixels take the model's mean
    colour; a constant channel hides everything. The paper subtracts the score of a baseline image
    inside the softmax, which changes nothing. It needs no gradient. Cost: one forward pass per
    channel.

    Paper:
        Wang, Wang, Du, Yang, Zhang, Ding, Mardziel & Hu, "Score-CAM: Score-Weighted Visual
        Explanations for Convolutional Neural Networks", CVPR workshops 2020, arXiv:1910.01279.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: the objective does not fit the model.
        LayerNotFound: there is no such layer.
        ParameterError: `batch_size` is less than 1.
        TechniqueError: the layer has no grid or comes after the objective, or the map is zero
            everywhere, the same in all cells or not finite.
    """

    layer: LayerName | None = None
    """Layer to weigh; by default the last one whose grid the objective still depends on."""
    relu: bool = True
    """Set negative values to 0, so that only evidence for the objective is shown."""

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
        mean_colour = baseline_images(model, images, "mean")
        scored = []
        for row, (image, fill, maps) in enumerate(zip(images, mean_colour, cells, strict=True)):
            with image_rows([row]):
                goal = objective.rows(row, row + 1)
                scored.append(self._scores(model, image, fill, maps, goal))
        weights = torch.stack(scored).softmax(1)
        maps = torch.einsum("bk,bkhw->bhw", weights.to(cells), cells)
        return (maps.relu() if self.relu else maps), scores

    def is_signed(self) -> bool:
        """Signed unless the ReLU removes negative values."""
        return not self.relu

    def why_zero(self) -> str:
        """The weighted activations were nowhere positive before the ReLU."""
        if self.relu:
            return "the weighted activations are nowhere positive: see them with relu=False"
        return super().why_zero()

    def _scores(
        self, model: HookedModel, image: Tensor, fill: Tensor, maps: Tensor, objective: Objective
    ) -> Tensor:
        """Scores `(C,)` of the image masked with each channel."""
        size = (image.shape[1], image.shape[2])

        def make(start: int, stop: int) -> Tensor:
            masks = functional.interpolate(maps[start:stop, None], size, mode="bilinear")
            low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
            span = high - low
            masks = torch.where(span > 0, (masks - low) / span, torch.zeros_like(masks))
            return torch.lerp(fill, image, masks.to(image))

        count = len(maps)
        return perturbed_scores(model, image, objective, count, make, description="masking")
