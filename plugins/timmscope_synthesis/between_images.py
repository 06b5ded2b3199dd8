"""What the images of one synthesis have to do with each other: diversity and alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from timmscope import HookedModel, Objective, default_layer

_FARTHEST = 4
"""Images so far apart in the order are still aligned."""


def default_between(model: HookedModel, objective: Objective) -> str:
    """Return the layer at which images are compared: the objective's own if it has a grid."""
    for point in objective.points:
        if point in model.layers and model.layers[point].grid is not None:
            return point
    return default_layer(model, objective)


def similarity(features: Tensor) -> Tensor:
    """Cosine `(B, B)` of the Gram matrices of features `(B, C, h, w)`."""
    flat = features.flatten(2)
    grams = torch.einsum("bcp,bdp->bcd", flat, flat).flatten(1)
    unit = functional.normalize(grams, dim=1)
    return unit @ unit.T


class BetweenImages:
    """Value of each image of a batch that depends on the others.

    `−diversity · Σ_j cos(G_i, G_j) / n` over the other images j of its target with Gram matrices G
    and n images of the target, minus `alignment · Σ_{d ≤ 4} mean (a_i − a_{i+d})² / 2^d` with the
    activations a of images in their order (Olah, Mordvintsev & Schubert, Distill 2017).

    Args:
        model: the model.
        layer: name of the layer.
        targets: `(B,)` target of each image of the batch.
        diversity: weight of the similarity.
        alignment: weight of the differences.
    """

    def __init__(
        self,
        model: HookedModel,
        layer: str,
        targets: Sequence[int],
        diversity: float,
        alignment: float,
    ) -> None:
        self._layer = model.layers[layer]
        self.points = (layer,)
        self._diversity, self._alignment = diversity, alignment
        own = torch.tensor(targets)
        others = (own[:, None] == own).float()
        self._share = (others - torch.eye(len(own))) / others.sum(1, keepdim=True)

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """The value of each image, `(B,)`."""
        features = self._layer.spatial(recording[self.points[0]]).float()
        value = features.new_zeros(len(features))
        if self._diversity:
            share = self._share.to(features)
            value = value - self._diversity * (similarity(features) * share).sum(1)
        if self._alignment:
            for distance in range(1, min(_FARTHEST, len(features) - 1) + 1):
                change = features[distance:] - features[:-distance]
                cost = change.square().mean((1, 2, 3)) / 2**distance
                value = value - self._alignment * functional.pad(cost, (0, distance))
        return value

    def mean_similarity(self, recording: Mapping[str, Tensor]) -> Tensor:
        """Mean cosine of each image with the others of its target, `(B,)`; 0 if it is alone."""
        features = self._layer.spatial(recording[self.points[0]]).float()
        share = (self._share > 0).to(features)
        return (similarity(features) * share).sum(1) / share.sum(1).clamp(min=1)
