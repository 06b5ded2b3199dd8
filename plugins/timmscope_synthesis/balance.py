"""A second term beside an objective, whose weight follows from the sizes of both gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from timmscope import HookedModel, Objective, Parameterisation

_LAST_TRY = 32
"""After so many steps a term without a weight stays without one."""

Term = Callable[..., Tensor]
"""From a recording, and one of images beside them if there are any, to values `(B,)`."""


class Balanced:
    """A term of a layer's activation, times a weight.

    Args:
        model: the model.
        objective: the bound objective of one image.
        layer: hook point that the term reads.
        term: the term.
        ratio: size of the term's gradient, relative to the objective's (L1).
    """

    def __init__(
        self, model: HookedModel, objective: Objective, layer: str, term: Term, ratio: float
    ) -> None:
        self._model, self._objective, self._layer = model, objective, layer
        self._term, self._ratio = term, ratio
        self._weight = 0.0

    def __call__(self, *recordings: Mapping[str, Tensor]) -> Tensor:
        """The weighted term of each view."""
        return self._weight * self._term(*recordings)

    def after_step(self, space: Parameterisation) -> Callable[[Tensor, int], None]:
        """Return what sets the weight after the first step, or as soon as both have a gradient."""

        def weigh(variable: Tensor, step: int) -> None:
            if not self._weight and step < _LAST_TRY:
                self.weigh(space.image(variable))

        return weigh

    def weigh(self, image: Tensor) -> None:
        """Set the weight from both gradients at an image `(1, C, H, W)`."""
        sizes = []
        for value in (self._objective, self._term):
            leaf = image.detach().clone().requires_grad_()
            points = dict.fromkeys((*self._objective.points, self._layer))
            with torch.enable_grad(), self._model.record(*points) as recording:
                self._model(leaf)
                (gradient,) = torch.autograd.grad(value(recording).sum(), leaf)
            sizes.append(float(gradient.abs().sum()))
        self._weight = self._ratio * sizes[0] / sizes[1] if sizes[1] else 0.0


def cosine_to(model: HookedModel, layer: str, direction: Tensor, middle: Tensor) -> Term:
    """Return the cosine of a layer's pooled activation, minus the middle, with a direction."""
    found = model.layers[layer]

    def term(recording: Mapping[str, Tensor]) -> Tensor:
        pooled = found.spatial(recording[layer]).float().mean((2, 3)) - middle.to(model.device)
        return functional.cosine_similarity(pooled, direction.to(pooled)[None], dim=1)

    return term
