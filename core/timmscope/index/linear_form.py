"""Turns objectives that are linear in pooled activations into vectors to search a store with.

A unit's mean and a direction are linear in the pooled row of their layer by definition. A class
logit is affine if the path from a mined layer to the logits is affine, as from the pooled features
through the classifier: the logit's gradient at the layer is then the vector. Whether the path is
affine is tested numerically, not inferred from the architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from timmscope.objectives.algebra import Objective, WeightedSum
from timmscope.objectives.class_objectives import LOGITS, ClassLogit, LayerOrClass
from timmscope.objectives.layer_objectives import Channel, Direction
from timmscope.objectives.text import ObjectiveText, as_objective
from timmscope.store.model import store_model
from timmscope_registry import ObjectiveError, StoreError

if TYPE_CHECKING:
    from timmscope.models import HookedModel
    from timmscope.store import Store

TOLERANCE = 1e-4
"""Largest error of a logit's linear form, relative to the logit's standard deviation."""
_PROBES = 8


@dataclass
class LinearForm:
    """`offset + Σ vector · pooled row`, a sum over layers of a store.

    Attributes:
        vectors: the weights of each layer, (C,) float64.
        offset: a constant.
    """

    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    offset: float = 0.0

    def add(self, layer: str, vector: np.ndarray, offset: float = 0.0) -> None:
        """Add a term."""
        self.vectors[layer] = self.vectors.get(layer, 0.0) + vector
        self.offset += offset


def linear_form(
    objective: Objective | str | int,
    store: Store,
    *,
    layer: str | None = None,
    model: HookedModel | None = None,
) -> LinearForm:
    """Return the linear form of an objective in the pooled rows of a store.

    Args:
        objective: units, directions and classes, and sums and multiples of them.
        store: the store.
        layer: the layer at which classes are linearised; by default the last mined layer from
            which the path to the logits is affine.
        model: the store's model; by default it is loaded if the objective needs it, as classes and
            names do.

    Raises:
        ObjectiveError: the objective is not a linear function of the rows that the store keeps.
        LayerNotFound: the store has no rows of the layer of a unit or direction.
        StoreMismatch: `model` is not the one that the store was mined with.
    """
    load = cache(lambda: store_model(store, model))
    if model is not None:
        load()

    form = LinearForm()
    for weight, term in _terms(as_objective(objective), store, load):
        if isinstance(term, Channel):
            channels = store.layer(term.layer).channels
            if not 0 <= term.unit < channels:
                raise ObjectiveError(
                    f"layer {term.layer!r} has units 0 to {channels - 1}, there is no unit "
                    f"{term.unit}"
                )
            form.add(term.layer, weight * np.eye(1, channels, term.unit)[0])
        elif isinstance(term, Direction):
            vector = np.asarray(term.vector)
            channels = store.layer(term.layer).channels
            if len(vector) != channels:
                raise ObjectiveError(
                    f"the direction has {len(vector)} numbers, but layer {term.layer!r} has "
                    f"{channels} channels"
                )
            form.add(term.layer, weight * vector)
        elif isinstance(term, ClassLogit) and len(term.targets) == 1:
            name, vector, offset = _logit_form(term, store, layer, load())
            form.add(name, weight * vector, weight * offset)
        else:
            raise ObjectiveError(
                f"{term.label} is not a linear function of the rows that a store keeps: search by "
                "units (LAYER[UNIT]), directions (LAYER@FILE.npy), classes, and sums of them; for "
                "rows near an image or a row, search by it"
            )
    return form


def _terms(
    objective: Objective, store: Store, load: Callable[[], HookedModel]
) -> Iterator[tuple[float, Objective]]:
    """Yield weights and terms; names are looked up in the model, and classes become numbers."""
    if isinstance(objective, WeightedSum):
        for weight, term in objective.terms:
            for inner, single in _terms(term, store, load):
                yield weight * inner, single
    elif isinstance(objective, ObjectiveText):
        chosen = objective.usual
        if not _names_stored_layers(chosen, store):
            with suppress(StoreError):  # without the model, names with signs have no meaning
                chosen = objective.resolve(load())
        yield from _terms(chosen, store, load)
    elif isinstance(objective, LayerOrClass | ClassLogit):
        yield 1.0, objective.bind(load(), None)
    else:
        yield 1.0, objective


def _names_stored_layers(objective: Objective, store: Store) -> bool:
    """Whether an objective needs no names but those of layers that the store has."""
    terms = objective.terms if isinstance(objective, WeightedSum) else ((1.0, objective),)
    return all(isinstance(t, Channel | Direction) and t.layer in store.layers for _, t in terms)


def _logit_form(
    objective: ClassLogit, store: Store, layer: str | None, model: HookedModel
) -> tuple[str, np.ndarray, float]:
    """Return layer, weights and offset of a class logit."""
    names = [store.layer(layer).name] if layer else list(store.layers)[::-1]
    if LOGITS in names:
        (target,) = objective.targets
        return LOGITS, np.eye(1, model.num_classes, int(target))[0], 0.0
    images = _probes(model)
    for name in names:
        found = _affine_form(objective, name, images, model)
        if found is not None:
            return name, *found
    raise ObjectiveError(
        f"{objective} is not an affine function of the pooled rows of {' or '.join(names)}: mine "
        "logits, or the pooled features that the classifier reads, as well"
    )


def _affine_form(
    objective: ClassLogit, layer: str, images: Tensor, model: HookedModel
) -> tuple[np.ndarray, float] | None:
    """Return weights (C,) and offset if weights · pooled + offset is the logit of all images."""
    point = model.layers[layer]
    try:
        scores, activation, gradient = model.layer_gradient(images, objective, layer)
    except ObjectiveError:  # the logits do not depend on the layer
        return None
    weights = point.spatial(gradient).double().sum((2, 3))  # (B, C)
    pooled = point.pooled(activation).double()
    values = scores.double()
    errors = values - pooled @ weights[0]
    spread = float(values.std()) * TOLERANCE + float(values.abs().max()) * 1e-6
    same = (weights - weights[0]).abs().amax() <= TOLERANCE * weights[0].abs().amax()
    if not bool(same) or float((errors - errors.mean()).abs().max()) > spread:
        return None
    return weights[0].cpu().numpy(), float(errors.mean())


def _probes(model: HookedModel) -> Tensor:
    """Return test images from flat to noisy and from dark to bright, `(B, C, H, W)`."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(_PROBES, *model.input_size, generator=generator)
    contrast = torch.linspace(0.05, 1, _PROBES).view(-1, 1, 1, 1)
    level = torch.rand(_PROBES, model.input_size[0], 1, 1, generator=generator)
    return (level + contrast * (noise - level)).clamp(0, 1).to(model.device)
