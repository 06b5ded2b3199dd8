"""Ablation-CAM: channels weighted by what the score loses without them."""

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
    perturbed_scores,
)
from timmscope_attribution.grid_layer import activations, grid_layer
from timmscope_registry.hooks import Layer


class AblationCAM(AttributionTechnique):
    """Ablation-CAM (Desai & Ramaswamy, WACV 2020): `ReLU(Σ_k (S − S_k) / |S| · A_k)`.

    S_k is the score with channel k of the layer set to 0 on its grid. The paper divides by S, which
    turns the map's sign where S is negative; here it keeps its sign. One forward a channel, unless
    all that follows the layer is linear, as average pooling and a linear classifier are: then the
    loss is `w_k · mean(A_k)` in closed form, one forward in all.
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
        found = _linear_losses(model, images, objective, layer)
        if found is None:
            cells, scores = activations(model, images, objective, layer)
            ablated = [
                _ablated(model, image, objective.rows(index, index + 1), layer)
                for index, image in enumerate(images)
            ]
            losses = torch.stack([row[0] - row[1:] for row in ablated])
        else:
            cells, scores, losses = found
        size = scores.abs()[:, None].to(losses)
        weights = losses / torch.where(size > 0, size, torch.ones_like(size))
        maps = torch.einsum("bk,bkhw->bhw", weights.to(cells), cells)
        return (maps.relu() if self.relu else maps), scores

    def is_signed(self) -> bool:
        """Signed unless the ReLU takes what speaks against the objective away."""
        return not self.relu

    def why_zero(self) -> str:
        """After the ReLU, the usual reason is that nothing was positive."""
        if self.relu:
            return "all evidence at the layer speaks against the objective: see it with relu=False"
        return super().why_zero()


def _ablated(model: HookedModel, image: Tensor, objective: Objective, layer: Layer) -> Tensor:
    """Score of the image, then with each channel of the layer set to 0 on its grid, `(1 + C,)`."""
    units: range = range(0)

    def make(start: int, stop: int) -> Tensor:
        nonlocal units
        units = range(start - 1, stop - 1)
        return image.expand(stop - start, *image.shape)

    def silence(activation: Tensor) -> Tensor:
        silenced = activation.clone()
        for row, unit in enumerate(units):
            if unit < 0:
                continue
            if layer.layout == "NCHW":
                silenced[row, unit] = 0
            elif layer.layout == "NHWC":
                silenced[row, ..., unit] = 0
            else:
                silenced[row, layer.prefix_tokens :, unit] = 0
        return silenced

    with model.edit({layer.name: silence}):
        return perturbed_scores(
            model, image, objective, 1 + layer.channels, make, description="ablating"
        )


def _linear_losses(
    model: HookedModel, images: Tensor, objective: Objective, layer: Layer
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Activations, scores and losses `(B, C)` where the score is linear in the layer, else None.

    If `S = b + Σ w · A`, then `S − S_k = Σ_ij ∂S/∂A_kij · A_kij`: exact, whatever the weights.
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
    """Whether an autograd graph computes a linear function (and an offset) of its leaves.

    Products count where one factor alone has a graph: the other is a constant.
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
