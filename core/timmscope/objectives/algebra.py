"""`Objective` is the base of all objectives, which can be added and scaled and have a text form.

An objective is made without a model (`channel("blocks.4", 17)`). Binding it to a model checks it
and resolves names; a bound objective computes its value from the recorded activations of a forward.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, SupportsFloat

from torch import Tensor

from timmscope_registry import ObjectiveError

if TYPE_CHECKING:
    from .model import ModelLike


class Objective(ABC):
    """One scalar of the model per image; `parse_objective(str(objective))` gives it back."""

    @abstractmethod
    def bind(self, model: ModelLike, images: Tensor | None) -> Objective:
        """Return the objective for this model, with names resolved and layers and units checked.

        Args:
            model: the model.
            images: `(B, C, H, W)`; needed by objectives that depend on the prediction.

        Raises:
            ObjectiveError: the objective does not fit the model.
            LayerNotFound: the model has no such layer.
        """

    def resolve(self, model: ModelLike) -> Objective:
        """Return the objective without text that only a model's names can tell how to read.

        Raises:
            ObjectiveError: a text has several readings, or none.
        """
        return self

    @property
    @abstractmethod
    def points(self) -> tuple[str, ...]:
        """Hook points whose activations the objective needs; `logits` is the model's output."""

    @abstractmethod
    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """Compute the value for each image, `(B,)` float32; only for bound objectives.

        Args:
            recording: activations by hook point, all those in `points`.
        """

    @abstractmethod
    def __str__(self) -> str: ...

    combined: ClassVar[Callable[..., Objective] | None] = None
    """Makes a sum in which this objective is a term; None if it is a sum like any other."""

    @property
    def num_targets(self) -> int | None:
        """Number of images for which the objective names a target; None if it fits any number."""
        return None

    @property
    def classes(self) -> tuple[int, ...] | None:
        """The class of each image, or one for all; None unless it is a bound class logit."""
        return None

    @property
    def label(self) -> str:
        """A short name for pictures and tables; by default the text."""
        return str(self)

    @property
    def reference_images(self) -> Tensor | None:
        """Images `(T, C, H, W)` that the objective matches, one per target; None if there are none.

        Only a bound objective has them.
        """
        return None

    def take(self, targets: Sequence[int]) -> Objective:
        """Return the objective for a batch whose image number i has the target `targets[i]`.

        An objective that names no targets, or one for all images, is returned unchanged.
        """
        return self

    def at_layers(self, layers: Mapping[str, str]) -> Objective:
        """Return the unbound objective with other layers in place of those named."""
        return self

    def rows(self, start: int, stop: int) -> Objective:
        """Return the objective for a part of the batch, with the targets of those images."""
        count = self.num_targets
        return self if count is None else self.take(range(count)[start:stop])

    def repeated(self, times: int) -> Objective:
        """Return the objective for a batch repeated as by `torch.cat([images] * times)`."""
        count = self.num_targets
        return self if count is None else self.take([*range(count)] * times)

    def _repr_pretty_(self, printer: object, cycle: bool) -> None:  # IPython
        printer.text(str(self))  # type: ignore[attr-defined]

    def __add__(self, other: Objective) -> Objective:
        return _sum((*terms_of(self), *terms_of(other)))

    def __radd__(self, other: int) -> Objective:
        if other != 0:  # 0 is where sum() starts
            raise ObjectiveError(f"cannot add {other!r} to an objective: add objectives")
        return self

    def __rsub__(self, other: object) -> Objective:
        raise ObjectiveError(f"cannot subtract an objective from {other!r}: subtract objectives")

    def __neg__(self) -> Objective:
        return self * -1.0

    def __sub__(self, other: Objective) -> Objective:
        return self + -other

    def __mul__(self, factor: float) -> Objective:
        if not isinstance(factor, SupportsFloat):
            raise ObjectiveError("an objective can be multiplied only by a number")
        if not math.isfinite(factor):
            raise ObjectiveError(
                f"an objective can be multiplied only by a finite number, not {factor!r}"
            )
        return _sum(tuple((weight * float(factor), term) for weight, term in terms_of(self)))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Objective:
        if not isinstance(divisor, SupportsFloat) or not float(divisor):
            raise ObjectiveError(
                f"an objective can be divided only by a number other than 0, not {divisor!r}"
            )
        return self * (1.0 / divisor)


@dataclass(frozen=True)
class WeightedSum(Objective):
    """`Σ weight · objective`."""

    terms: tuple[tuple[float, Objective], ...]

    def bind(self, model: ModelLike, images: Tensor | None) -> Objective:
        """Bind every term."""
        return _combined((weight, term.bind(model, images)) for weight, term in self.terms)

    def resolve(self, model: ModelLike) -> Objective:
        """Resolve every term."""
        return _combined((weight, term.resolve(model)) for weight, term in self.terms)

    @property
    def points(self) -> tuple[str, ...]:
        """The hook points of all terms, each once."""
        return tuple(dict.fromkeys(point for _, term in self.terms for point in term.points))

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum of the terms' values."""
        values = [weight * term(recording) for weight, term in self.terms]
        total = values[0]
        for value in values[1:]:
            total = total + value
        return total

    @property
    def num_targets(self) -> int | None:
        """The number of targets that the terms have.

        Raises:
            ObjectiveError: terms have different numbers of targets.
        """
        numbers = {term.num_targets for _, term in self.terms} - {None}
        if len(numbers) > 1:
            raise ObjectiveError(f"terms name targets for {sorted(numbers)} images: {self}")  # type: ignore[type-var]
        return numbers.pop() if numbers else None

    def take(self, targets: Sequence[int]) -> Objective:
        """Apply `take` to every term."""
        return WeightedSum(tuple((weight, term.take(targets)) for weight, term in self.terms))

    def at_layers(self, layers: Mapping[str, str]) -> Objective:
        """Apply `at_layers` to every term."""
        return WeightedSum(tuple((weight, term.at_layers(layers)) for weight, term in self.terms))

    @property
    def reference_images(self) -> Tensor | None:
        """The images that the first term matches, if one has any."""
        found = (term.reference_images for _, term in self.terms)
        return next((images for images in found if images is not None), None)

    @property
    def label(self) -> str:
        """The sum of the terms' labels."""
        return self._text([term.label for _, term in self.terms])

    def __str__(self) -> str:
        return self._text([str(term) for _, term in self.terms])

    def _text(self, terms: Sequence[str]) -> str:
        text = ""
        for position, ((weight, _), term) in enumerate(zip(self.terms, terms, strict=True)):
            sign = ("-" if weight < 0 else "") if not position else (" - " if weight < 0 else " + ")
            factor = "" if abs(weight) == 1 else f"{abs(weight)!r}*"
            text += f"{sign}{factor}{term}"
        return text


def _combined(terms: Iterable[tuple[float, Objective]]) -> Objective:
    """The weighted sum of objectives, of which some may be sums."""
    return WeightedSum(
        tuple((weight * inner, term) for weight, part in terms for inner, term in terms_of(part))
    )


def terms_of(objective: Objective) -> tuple[tuple[float, Objective], ...]:
    """Return the terms of a sum with their weights; of another objective, itself.

    Raises:
        ObjectiveError: it is no objective.
    """
    if not isinstance(objective, Objective):
        raise ObjectiveError(
            f"cannot add {objective!r} to an objective: add objectives, multiply by numbers"
        )
    return objective.terms if isinstance(objective, WeightedSum) else ((1.0, objective),)


def _sum(terms: tuple[tuple[float, Objective], ...]) -> Objective:
    if len(terms) == 1 and terms[0][0] == 1.0:
        return terms[0][1]
    for _, term in terms:
        if term.combined is not None:
            return term.combined(terms)
    return WeightedSum(terms)
