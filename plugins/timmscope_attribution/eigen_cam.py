"""Eigen-CAM: the layer's first principal component."""

from __future__ import annotations

import torch
from torch import Tensor

from timmscope import CamTechnique, HookedModel, Objective, TechniqueError, layer_activation


class EigenCAM(CamTechnique):
    """Eigen-CAM (Muhammad & Yeasin, IJCNN 2020): a layer's activation on its main direction.

    `A · v₁`, where `v₁` is the first right singular vector of the activation as a matrix of cells
    by channels. No class and no gradient take part: the objective only decides which layer is the
    default and which score is reported. A singular vector has no sign of its own; here the map is
    positive where activations are large, measured by their norm; where all norms are the same, as
    after a layer norm, on the side with the higher peak.
    """

    centre: bool = True
    """Subtract each channel's mean over the cells first, as pytorch-grad-cam does; without, it is
    the letter of the paper."""

    def attribute(
        self, model: HookedModel, images: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor]:
        """Maps `(B, h, w)` and scores `(B,)`.

        Raises:
            LayerNotFound: there is no such layer.
            TechniqueError: the layer has no grid, or its activation is not finite.
        """
        layer = self.mapped_layer(model, objective)
        score, activation = layer_activation(model, images, objective, layer.name)
        cells = layer.spatial(activation)
        cells = cells if cells.dtype == torch.float64 else cells.float()
        if not bool(torch.isfinite(cells).all()):
            raise TechniqueError(
                f"the activation of {layer.name!r} holds NaN or infinite values, which have no "
                "principal component; choose an earlier layer"
            )
        maps = self.weigh(cells, cells)
        return (maps.relu() if self.relu else maps), score

    def weigh(self, cells: Tensor, slopes: Tensor) -> Tensor:
        """`A · v₁`; the gradient is not looked at."""
        return first_component(cells, centre=self.centre)

    def shared_layers(self, model: HookedModel, objective: Objective) -> tuple[str, ...]:
        """None: it asks for no gradient, and takes what others have."""
        return ()

    def why_zero(self) -> str:
        """Only an activation that is the same in all cells gives nothing."""
        return "the layer's activation is the same in every cell; choose another layer"


def first_component(cells: Tensor, *, centre: bool) -> Tensor:
    """Projection of activations `(B, C, h, w)` on their first singular vector, `(B, h, w)`.

    By the smaller Gram matrix, cells by cells or channels by channels, in float64: with `A = UΣVᵀ`
    the projection `A v₁` is `σ₁ u₁`.
    """
    count, channels, height, width = cells.shape
    rows = cells.flatten(2).transpose(1, 2).double()  # (B, cells, C)
    strength = rows.square().sum(2)
    if centre:
        rows = rows - rows.mean(1, keepdim=True)
    if height * width <= channels:
        values, vectors = torch.linalg.eigh(rows @ rows.mT)
        projection = vectors[:, :, -1] * values[:, -1:].clamp(min=0).sqrt()
    else:
        vectors = torch.linalg.eigh(rows.mT @ rows)[1]
        projection = (rows @ vectors[:, :, -1:])[:, :, 0]
    # The direction along which activations grow. After a layer norm all have the same norm, but
    # for rounding: there it is the side on which fewer cells lie further out.
    lean = (projection * (strength - strength.mean(1, keepdim=True))).sum(1, keepdim=True)
    alike = lean.abs() <= 1e-4 * projection.norm(dim=1, keepdim=True) * strength.norm(
        dim=1, keepdim=True
    )
    lean = torch.where(alike, projection.pow(3).sum(1, keepdim=True), lean)
    # The scale of rounding counts as nothing.
    projection = torch.where(lean < 0, -projection, projection)
    floor = 1e-12 * strength.amax(1, keepdim=True).sqrt()
    projection = torch.where(projection.abs() > floor, projection, 0)
    return projection.view(count, height, width).to(cells.dtype)
