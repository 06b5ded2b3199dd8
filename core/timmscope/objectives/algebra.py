"""The algebra of objectives: a value with a text form, that adds and scales.

An objective is made without a model (`channel("blocks.4", 17)`), then bound to one, which checks
it and turns names into numbers; bound, it reads its value off a recording of one forward.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsFloat

from torch import Tensor

from timmscope_registry import ObjectiveError

if TYPE_CHECKING:
    from .model import ModelLike


class Objective(ABC):
    """A scalar of the model an image. `str(objective)` is its text form and parses back."""

    @abstractmethod
    def bind(self, model: ModelLike, images: Tensor | None) -> Objective:
        """The same objective for this model: names resolved, layers and units checked.

        Args:
            model: the model it will be read from.
            images: `(B, 3, H, W)`; needed by objectives that depend on the prediction.

        Raises:
            ObjectiveError: it does not fit the model.
            LayerNotFound: the model has no such layer.
        """

    @property
    @abstractmethod
    def points(self) -> tuple[str, ...]:
        """Hook points whose activations it reads; `logits` is the model's output."""

    @abstractmethod
    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """Value an image, `(B,)` float32; only for bound objectives."""

    @abstractmethod
    def __str__(self) -> str: ...

    @property
    def images_named(self) -> int | None:
        """How many images it names a target for; None where it serves any number."""
        return None

    @property
    def classes(self) -> tuple[int, ...] | None:
        """The class of each image, or one for all, where it is a class logit alone and bound."""
        return None

    def rows(self, start: int, stop: int) -> Objective:
        """The objective for a part of the batch: per-image targets are cut to those rows."""
        return self

    def repeated(self, times: int) -> Objective:
        """The objective for the batch `times` over, as `torch.cat([images] * times)` makes it."""
        return self

    def _repr_pretty_(self, printer: object, cycle: bool) -> None:  # IPython
        printer.text(str(self))  # type: ignore[attr-defined]

    def __add__(self, other: Objective) -> Objective:
        return _sum((*_terms(self), *_terms(other)))

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
            raise ObjectiveError("objectives are multiplied by numbers, not by each other")
        if not math.isfinite(factor):
            raise ObjectiveError(f"an objective is multiplied by a finite number, not {factor!r}")
        return _sum(tuple((weight * float(factor), term) for weight, term in _terms(self)))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Objective:
        if not isinstance(divisor, SupportsFloat) or not float(divisor):
            raise ObjectiveError(f"an objective is divided by a number but 0, not {divisor!r}")
        return self * (1.0 / divisor)


@dataclass(frozen=True)
class WeightedSum(Objective):
    """`Σ weight · objective`."""

    terms: tuple[tuple[float, Objective], ...]

    def bind(self, model: ModelLike, images: Tensor | None) -> Objective:
        """Bind every term."""
        return WeightedSum(tuple((weight, term.bind(model, images)) for weight, term in self.terms))

    @property
    def points(self) -> tuple[str, ...]:
        """All terms' hook points, each once."""
        return tuple(dict.fromkeys(point for _, term in self.terms for point in term.points))

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum of the terms' values."""
        values = [weight * term(recording) for weight, term in self.terms]
        total = values[0]
        for value in values[1:]:
            total = total + value
        return total

    @property
    def images_named(self) -> int | None:
        """What its terms say.

        Raises:
            ObjectiveError: they name different numbers of images.
        """
        named = {term.images_named for _, term in self.terms} - {None}
        if len(named) > 1:
            raise ObjectiveError(f"terms name targets for {sorted(named)} images: {self}")  # type: ignore[type-var]
        return named.pop() if named else None

    def rows(self, start: int, stop: int) -> Objective:
        """Cut every term to the rows."""
        return WeightedSum(tuple((weight, term.rows(start, stop)) for weight, term in self.terms))

    def repeated(self, times: int) -> Objective:
        """Repeat every term's targets."""
        return WeightedSum(tuple((weight, term.repeated(times)) for weight, term in self.terms))

    def __str__(self) -> str:
        text = ""
        for position, (weight, term) in enumerate(self.terms):
            sign = ("-" if weight < 0 else "") if not position else (" - " if weight < 0 else " + ")
            factor = "" if abs(weight) == 1 else f"{abs(weight)!r}*"
            text += f"{sign}{factor}{term}"
        return text


def _terms(objective: Objective) -> tuple[tuple[float, Objective], ...]:
    if not isinstance(objective, Objective):
        raise ObjectiveError(
            f"cannot add {objective!r} to an objective: add objectives, multiply by numbers"
        )
    return objective.terms if isinstance(objective, WeightedSum) else ((1.0, objective),)


def _sum(terms: tuple[tuple[float, Objective], ...]) -> Objective:
    if len(terms) == 1 and terms[0][0] == 1.0:
        return terms[0][1]
    return WeightedSum(terms)
