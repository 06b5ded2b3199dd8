"""Ablation-CAM: channels weighted by the drop of the score without them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from timmscope import (
    AttributionTechnique,
    HookedModel,
    LayerName,
    Objective,
    ObjectiveError,
    image_rows,
    perturbed_scores,
)
from timmscope_attribution.grid_layer import activations, grid_layer
from timmscope_registry.hooks import Layer


class AblationCAM(AttributionTechnique):
    """Ablation-CAM weighs each channel by how much the score drops without it.

    `ReLU(Σ_k (S − S_k) / |S| · A_k)` with the activation A of the layer, where S is the objective
    and S_k the objective with channel k set to 0 on the grid. The paper divides by S, which inverts
    the map where S is negative; dividing by |S| does not. Where S is 0, the drop is not divided.
    Cost: one forward pass per channel. If everything after the layer is linear, such as average
    pooling and a linear classifier, `S − S_k = Σ_ij ∂S/∂A_kij · A_kij` is exact, and one forward
    pass is enough.

    Paper:
        Desai & Ramaswamy, "Ablation-CAM: Visual Explanations for Deep Convolutional Network via
        Gradient-free Localization", WACV 2020.

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
        closed_form = _linear_drops(model, images, objective, layer)
        if closed_form is None:
            cells, scores = activations(model, images, objective, layer)
            ablated = []
            for row, image in enumerate(images):
                with image_rows([row]):
                    ablated.append(_ablated(model, image, objective.rows(row, row + 1), layer))
            drops = torch.stack([row[0] - row[1:] for row in ablated])
        else:
            cells, scores, drops = closed_form
        size = scores.abs()[:, None].to(drops)
        weights = drops / torch.where(size > 0, size, torch.ones_like(size))
        maps = torch.einsum("bk,bkhw->bhw", weights.to(cells), cells)
        return (maps.relu() if self.relu else maps), scores

    def is_signed(self) -> bool:
        """Signed unless the ReLU removes negative values."""
        return not self.relu

    def why_zero(self) -> str:
        """After the ReLU, the usual reason is that no value was positive."""
        if self.relu:
            return "all evidence at the layer is against the objective: see it with relu=False"
        return super().why_zero()


def _ablated(model: HookedModel, image: Tensor, objective: Objective, layer: Layer) -> Tensor:
    """Scores `(1 + C,)`: of the image, then with each channel of the layer set to 0 on its grid."""
    units: range = range(0)

    def make(start: int, stop: int) -> Tensor:
        nonlocal units
        units = range(start - 1, stop - 1)
        return image.expand(stop - start, *image.shape)

    def zero_channels(activation: Tensor) -> Tensor:
        ablated = activation.clone()
        for row, unit in enumerate(units):
            if unit < 0:
                continue
            if layer.layout == "NCHW":
                ablated[row, unit] = 0
            elif layer.layout == "NHWC":
                ablated[row, ..., unit] = 0
            else:
                ablated[row, layer.prefix_tokens :, unit] = 0
        return ablated

    with model.edit({layer.name: zero_channels}):
        return perturbed_scores(
            model, image, objective, 1 + layer.channels, make, description="ablating"
        )


def _linear_drops(
    model: HookedModel, images: Tensor, objective: Objective, layer: Layer
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Activations, scores and drops `(B, C)` if the score is linear in the layer, else None.

    If `S = b + Σ w · A`, then `S − S_k = Σ_ij ∂S/∂A_kij · A_kij`: exact for any weights.
    """
    with torch.enable_grad():
        with model.cut(layer.name) as cut, model.record(*objective.points) as recording:
            model(images)
        score = objective(recording)
        if not score.requires_grad:
            raise ObjectiveError(f"{objective} does not depend on layer {layer.name!r}")
        if not _is_linear(score.grad_fn):
            return None
        (gradient,) = torch.autograd.grad(score.sum(), cut.leaf)
    cells, slopes = layer.spatial(cut.leaf.detach()), layer.spatial(gradient)
    if cells.dtype != torch.float64:
        cells, slopes = cells.float(), slopes.float()
    return cells, score.detach(), (slopes * cells).sum((2, 3))


_LINEAR = frozenset(
    f"{name}Backward{number}"
    for name in (
        "Add", "Addmm", "Alias", "Clone", "Div", "Expand", "Gather", "Mean", "Mm", "Mul", "Neg",
        "Permute", "ReshapeAlias", "Select", "Slice", "Squeeze", "Sub", "Sum", "T", "ToCopy",
        "Transpose", "UnsafeView", "Unsqueeze", "View",
    )
    for number in range(3)
)  # fmt: skip
_PRODUCTS = ("Addmm", "Mm", "Mul", "Div")


def _is_linear(end: Any) -> bool:
    """Whether an autograd graph computes an affine function of its leaves.

    A product is linear if only one of its factors has a graph, because the other is a constant.
    """
    nodes, seen = [end], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = node.name()
        if name == "torch::autograd::AccumulateGrad":
            continue
        before = [parent for parent, _ in node.next_functions if parent is not None]
        if name not in _LINEAR or (name.startswith(_PRODUCTS) and len(before) > 1):
            return False
        nodes += before
    return True
