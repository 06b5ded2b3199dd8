"""Eigen-CAM: the first principal component of a layer's activation."""

from __future__ import annotations

import torch
from torch import Tensor

from timmscope import CamTechnique, HookedModel, Objective, TechniqueError, layer_activation


class EigenCAM(CamTechnique):
    """Eigen-CAM projects a layer's activation on its first principal component.

    `A · v₁`, where `v₁` is the first right singular vector of the activation as a matrix of cells
    by channels; with `relu`, `ReLU(A · v₁)`. Neither class nor gradient is used: the objective only
    decides the default layer and the reported score. A singular vector has no sign of its own: here
    the map is positive where the norm of the activation is large. Where all norms are equal, as
    after a layer norm, it is positive on the side with the higher peak.

    Paper:
        Muhammad & Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN 2020,
        arXiv:2008.00299.

    Inherited parameters:
        layer: layer to weigh; by default the last one whose grid the objective still depends on.
        relu: set negative values to 0.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: the objective does not fit the model.
        LayerNotFound: there is no such layer.
        ParameterError: `batch_size` is less than 1.
        TechniqueError: the layer has no grid, its activation is not finite, or it is the same in
            all cells.
    """

    centre: bool = True
    """Subtract each channel's mean over the cells first, as pytorch-grad-cam does; off, the matrix
    is not centred, as in the paper."""

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
        """`A · v₁`; the gradient is not used."""
        return first_component(cells, centre=self.centre)

    def shared_layers(self, model: HookedModel, objective: Objective) -> tuple[str, ...]:
        """None: it needs no gradient."""
        return ()

    def why_zero(self) -> str:
        """The activation is the same in all cells."""
        return "the layer's activation is the same in every cell; choose another layer"


def first_component(cells: Tensor, *, centre: bool) -> Tensor:
    """Projection of activations `(B, C, h, w)` on their first singular vector, `(B, h, w)`.

    It comes from the smaller Gram matrix, cells by cells or channels by channels, in float64: with
    `A = UΣVᵀ` the projection `A v₁` is `σ₁ u₁`.
    """
    count, channels, height, width = cells.shape
    rows = cells.flatten(2).transpose(1, 2).double()  # (B, cells, C)
    energy = rows.square().sum(2)
    if centre:
        rows = rows - rows.mean(1, keepdim=True)
    if height * width <= channels:
        values, vectors = torch.linalg.eigh(rows @ rows.mT)
        projection = vectors[:, :, -1] * values[:, -1:].clamp(min=0).sqrt()
    else:
        vectors = torch.linalg.eigh(rows.mT @ rows)[1]
        projection = (rows @ vectors[:, :, -1:])[:, :, 0]
    # Positive is the direction in which norms grow. After a layer norm all norms are equal up to
    # rounding: there it is the direction of the longer tail.
    sign = (projection * (energy - energy.mean(1, keepdim=True))).sum(1, keepdim=True)
    equal_norms = sign.abs() <= 1e-4 * projection.norm(dim=1, keepdim=True) * energy.norm(
        dim=1, keepdim=True
    )
    sign = torch.where(equal_norms, projection.pow(3).sum(1, keepdim=True), sign)
    projection = torch.where(sign < 0, -projection, projection)
    # Values at the scale of rounding become 0.
    floor = 1e-12 * energy.amax(1, keepdim=True).sqrt()
    projection = torch.where(projection.abs() > floor, projection, 0)
    return projection.view(count, height, width).to(cells.dtype)
