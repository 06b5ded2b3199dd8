"""`TrainedWeights` is what a training left: the network, and the technique that trained it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from timmscope.models import HookedModel, load_trained
from timmscope.models.trained import Builds, Card, card_of, technique_of
from timmscope_registry import ModelError

if TYPE_CHECKING:
    from timmscope.techniques.training import TrainingTechnique

TrainedT = TypeVar("TrainedT", bound="TrainingTechnique")


@dataclass(frozen=True, eq=False)
class TrainedWeights(Generic[TrainedT]):
    """A trained network, with the technique that trained it.

    Attributes:
        folder: where the training wrote it.
        model: the network; `model.module` is what the technique's `build` made, with the trained
            weights, and `model.preprocessing` what its card says.
        technique: the training technique, with its parameters.
        card: how it was trained.
    """

    folder: str
    model: HookedModel = field(repr=False)
    technique: TrainedT
    card: Card = field(repr=False)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        kind: type[TrainedT] | None = None,
        *,
        base: HookedModel | None = None,
    ) -> TrainedWeights[TrainedT]:
        """Load what a training wrote.

        Args:
            path: the folder that the training wrote, or the weights in it.
            kind: class of the training technique; by default any that is registered.
            base: the model that was trained, for one that cannot be loaded by its id.

        Raises:
            ModelError: there is no such network, another technique trained it, its card or weights
                are damaged, edited or do not belong together, the model cannot be loaded, or its
                user does not trust the card.
            PluginError: no plugin provides the technique.
        """
        weights, card = card_of(path)
        made: Any
        if kind is not None and card.technique == kind.technique_id():
            made = technique_of(card, weights.parent, kind)
        else:
            made = technique_of(card, weights.parent)
            if kind is not None and not isinstance(made, kind):
                raise ModelError(
                    f"{weights.parent} was trained by {card.technique}, expected "
                    f"{kind.technique_id()}: name what that technique left"
                )
        if base is not None and base.weights_sha256 != card.model_sha256:
            base = None
        model = load_trained(path, base, technique=cast(Builds, made))
        return cls(os.fspath(path), model, made, card)
