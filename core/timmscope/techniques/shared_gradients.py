"""Computes layers' activations and gradients, and shares them between class activation maps.

Techniques that run side by side need the same pair, or pairs of several layers. Inside
`sharing(layers)` all of them come from one forward and one backward pass at the first request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from timmscope.models import HookedModel
from timmscope.objectives import Objective


@dataclass(frozen=True)
class LayerView:
    """A layer's activation and gradient on the images of one chunk.

    Attributes:
        score: `(B,)` value of the objective.
        activation: the layer's output, in the layer's layout.
        gradient: gradient of the objective with respect to the activation, in the same layout.
    """

    score: Tensor
    activation: Tensor
    gradient: Tensor


@dataclass
class _Shared:
    layers: tuple[str, ...]
    score: Tensor | None = None
    found: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


_shared: ContextVar[_Shared | None] = ContextVar("timmscope_shared_layers", default=None)


@contextmanager
def sharing(layers: Sequence[str]) -> Iterator[None]:
    """Let the first `layer_view` of one of the layers inside the context compute all of them.

    All calls inside must use the same model, images and objective.
    """
    token = _shared.set(_Shared(tuple(dict.fromkeys(layers))) if layers else None)
    try:
        yield
    finally:
        _shared.reset(token)


def layer_view(
    model: HookedModel, images: Tensor, objective: Objective, layer: str
) -> LayerView | None:
    """Return a layer's activation and gradient; None if the objective does not depend on it."""
    shared = _shared.get()
    if shared is None or layer not in shared.layers:
        shared = _Shared((layer,))
    if shared.score is None:
        shared.score, shared.found = model.layer_gradients(images, objective, shared.layers)
    return LayerView(shared.score, *shared.found[layer]) if layer in shared.found else None


def layer_activation(
    model: HookedModel, images: Tensor, objective: Objective, layer: str
) -> tuple[Tensor, Tensor]:
    """Return scores `(B,)` and a layer's activation without a graph, for maps without gradients."""
    shared = _shared.get()
    if shared is not None and layer in shared.layers:
        view = layer_view(model, images, objective, layer)
        if view is not None:
            return view.score, view.activation
    with torch.no_grad(), model.record(layer, *objective.points) as recording:
        model(images)
        return objective(recording), recording[layer]
