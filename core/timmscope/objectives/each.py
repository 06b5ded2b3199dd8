"""`each` gives every image of a synthesis an objective of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from timmscope.objectives.algebra import Objective, WeightedSum, terms_of
from timmscope_registry import ObjectiveError

if TYPE_CHECKING:
    from .model import ModelLike


def each(*objectives: Objective) -> Objective:
    """Return the objective whose image number i has the i-th of these objectives.

    Many units in one call, for example: `each(*(channel("blocks.4", unit) for unit in units))`.

    Args:
        objectives: one per image; those that name several targets give as many.

    Raises:
        ObjectiveError: there is none.
    """
    parts: list[Objective] = []
    for objective in objectives:
        count = objective.num_targets or 1
        parts += [objective.take([row]) for row in range(count)] if count > 1 else [objective]
    if not parts:
        raise ObjectiveError("each() names no objective: give one for each image")
    return Each(tuple(parts))


def interpolate(first: Objective, second: Objective, count: int = 5) -> Objective:
    """Return the steps from one objective to another, an image each.

    Image i has `(1 − t) · first + t · second` with t from 0 to 1 in equal steps, which shows how
    two units, classes or directions go over into each other (Olah, Mordvintsev & Schubert, Distill
    2017, "interaction between neurons").

    Args:
        first: objective of the first image.
        second: objective of the last image.
        count: number of images, at least 2.

    Raises:
        ObjectiveError: the count is less than 2.
    """
    if count < 2:
        raise ObjectiveError(f"interpolate has {count} images: expected 2 or more")
    shares = [number / (count - 1) for number in range(count)]
    inner = [(1 - share) * first + share * second for share in shares[1:-1]]
    return each(first, *inner, second)


@dataclass(frozen=True)
class Each(Objective):
    """An objective for each image."""

    objectives: tuple[Objective, ...]

    def bind(self, model: ModelLike, images: Tensor | None) -> Objective:
        """Bind every objective, to its image if there is one for each."""
        own = images is not None and len(images) == len(self.objectives)
        return Each(
            tuple(
                part.bind(model, images[row : row + 1] if own and images is not None else images)
                for row, part in enumerate(self.objectives)
            )
        )

    def resolve(self, model: ModelLike) -> Objective:
        """Resolve every objective; those that name several targets give as many."""
        return each(*(part.resolve(model) for part in self.objectives))

    @property
    def points(self) -> tuple[str, ...]:
        """The hook points of all objectives, each once."""
        return tuple(dict.fromkeys(point for part in self.objectives for point in part.points))

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """The value of each image's own objective.

        Raises:
            ObjectiveError: there are more or fewer images.
        """
        found = {len(recording[point]) for point in self.points}
        if found != {len(self.objectives)}:
            raise ObjectiveError(
                f"there are objectives for {len(self.objectives)} images, and {max(found)} images"
            )
        values: list[Tensor] = []
        for row, part in enumerate(self.objectives):
            own = {point: recording[point][row : row + 1] for point in part.points}
            values.append(part(own))
        return torch.cat(values)

    @property
    def num_targets(self) -> int:
        """The number of objectives."""
        return len(self.objectives)

    @property
    def classes(self) -> tuple[int, ...] | None:
        """The class of each image; None if an objective is no bound class logit."""
        found = [part.classes for part in self.objectives]
        return None if None in found else tuple(classes[0] for classes in found if classes)

    @property
    def reference_images(self) -> Tensor | None:
        """The images that the objectives match; None unless each has one of the same size."""
        found = [part.reference_images for part in self.objectives]
        images = [image for image in found if image is not None]
        if len(images) < len(found) or len({image.shape[1:] for image in images}) != 1:
            return None
        return torch.cat(images)

    def take(self, targets: Sequence[int]) -> Objective:
        """The objectives of these images; for one image, its objective."""
        parts = tuple(self.objectives[target] for target in targets)
        return parts[0] if len(parts) == 1 else Each(parts)

    def at_layers(self, layers: Mapping[str, str]) -> Objective:
        """Apply `at_layers` to every objective."""
        return Each(tuple(part.at_layers(layers) for part in self.objectives))

    @property
    def label(self) -> str:
        """The labels, or the one label."""
        return self._text([part.label for part in self.objectives])

    def __str__(self) -> str:
        return self._text([str(part) for part in self.objectives])

    def _text(self, parts: Sequence[str]) -> str:
        return f"each({'; '.join(parts)})"

    def combined(self, terms: Sequence[tuple[float, Objective]]) -> Objective:
        """Return a sum in which this is a term, as an objective for each image.

        Raises:
            ObjectiveError: terms name other numbers of targets.
        """
        count = WeightedSum(tuple(terms)).num_targets
        rows = []
        for row in range(count or 1):
            own = tuple(
                (weight * inner, part)
                for weight, term in terms
                for inner, part in terms_of(_row(term, row))
            )
            rows.append(own[0][1] if len(own) == 1 and own[0][0] == 1 else WeightedSum(own))
        return Each(tuple(rows))


def _row(objective: Objective, row: int) -> Objective:
    """The objective of one image."""
    if isinstance(objective, Each):
        return objective.objectives[row]
    return objective if objective.num_targets in (None, 1) else objective.take([row])
