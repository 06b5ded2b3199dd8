"""`CellAttributions` explains a unit at a cell per image, for several images in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from timmscope.drawing import HeatScale, around_grey, colourise
from timmscope.objectives import ModelLike, Objective
from timmscope.progress import quiet
from timmscope.techniques import Attribution, AttributionTechnique
from timmscope.techniques.lookup import attribution
from timmscope_registry import (
    ModelError,
    ParameterError,
    TechniqueError,
    TimmscopeError,
    UnsupportedModel,
)

if TYPE_CHECKING:
    from timmscope.models import HookedModel
    from timmscope_registry.hooks import Layer

BATCH_SIZE = 16
"""Number of images that are explained together."""
_CEILING = 6.0
"""Largest output of a ReLU6."""
_MAX_FAILURES = 16
"""If a technique fails for as many images before it succeeds, it does not fit the model."""


class CellAttributions:
    """Draws explanations of units at cells.

    No gradient passes where a ReLU6 is at its ceiling, as it is at the strongest cells. There the
    input of the ReLU6 is explained instead.

    Args:
        model: the model.
        layer: name of the layer.
        technique: an attribution, or its text.

    Attributes:
        first_error: first error of the technique; None if there was none.
        failures: number of images for which the technique failed.

    Raises:
        ParameterError: the technique is not an attribution.
    """

    def __init__(
        self, model: HookedModel, layer: str, technique: AttributionTechnique | str
    ) -> None:
        self._technique = attribution(technique) if isinstance(technique, str) else technique
        if not isinstance(self._technique, AttributionTechnique):
            raise ParameterError(f"{technique!r} is not an attribution", parameter="view")
        self._model = model
        self._layer = model.layers[layer].name
        self._relu6_input = _relu6_input(model, layer)
        self.first_error: TimmscopeError | None = None
        self.failures = self._explained = 0

    @property
    def title(self) -> str:
        """Name of the technique."""
        return self._technique.title()

    @property
    def unsuitable(self) -> bool:
        """Whether the technique failed for many images and explained none."""
        return self.failures >= _MAX_FAILURES and not self._explained

    @property
    def any_explained(self) -> bool:
        """Whether the technique explained any image."""
        return self._explained > 0

    def explain(
        self,
        images: Tensor,
        cells: Sequence[tuple[int, tuple[int, int]]],
        values: Sequence[float],
    ) -> list[Tensor]:
        """Return one picture `(3, H, W)` in [0, 1] per image, grey if there is no explanation.

        Args:
            images: `(B, 3, H, W)` in [0, 1].
            cells: for each image, a unit and the row and column of its cell.
            values: values of the units at the cells.
        """
        layers = [
            self._layer if self._relu6_input is None or value < _CEILING else self._relu6_input
            for value in values
        ]
        pictures: dict[int, Tensor] = {}
        for layer in filter(None, (self._layer, self._relu6_input)):
            rows = [row for row, name in enumerate(layers) if name == layer]
            if rows:
                parts = self._explain_at(layer, images[rows], [cells[row] for row in rows])
                pictures |= zip(rows, parts, strict=True)
        return [pictures[row] for row in range(len(images))]

    def _explain_at(
        self, layer: str, images: Tensor, cells: Sequence[tuple[int, tuple[int, int]]]
    ) -> list[Tensor]:
        try:
            with quiet():
                result = self._technique(self._model, images, _CellObjective(layer, tuple(cells)))
        except (TechniqueError, ModelError, UnsupportedModel) as error:
            if len(images) > 1:  # the technique may succeed for some of the images
                return [
                    picture
                    for row, cell in enumerate(cells)
                    for picture in self._explain_at(layer, images[row : row + 1], [cell])
                ]
            if layer != self._layer:
                return self._explain_at(self._layer, images, cells)
            self.first_error = self.first_error or error
            self.failures += 1
            return [torch.full((3, *images.shape[2:]), 0.5)]
        self._explained += len(images)
        return _colourise(result)


@dataclass(frozen=True)
class _CellObjective(Objective):
    """The value of a unit at a cell of a layer; one target for all images, or one per image."""

    layer: str
    targets: tuple[tuple[int, tuple[int, int]], ...]
    at: Layer | None = field(default=None, repr=False, compare=False)

    def bind(self, model: ModelLike, images: Tensor | None) -> Objective:
        """Find the layer; units and cells are valid because they come from a store of it."""
        return replace(self, at=model.layers[self.layer])

    @property
    def points(self) -> tuple[str, ...]:
        """The layer."""
        return (self.layer,)

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """Return the unit's value at the cell, for each image."""
        assert self.at is not None, "binding finds the layer"
        maps = self.at.spatial(recording[self.layer])
        units = [unit for unit, _ in self.targets]
        rows = [y if self.at.grid else 0 for _, (y, _) in self.targets]
        columns = [x if self.at.grid else 0 for _, (_, x) in self.targets]
        if len(units) == 1:
            picked = maps[:, units[0], rows[0], columns[0]]
        else:
            picked = maps[range(len(maps)), units, rows, columns]
        return picked.to(torch.promote_types(maps.dtype, torch.float32))

    @property
    def num_targets(self) -> int | None:
        """Number of targets; None if there is one for all images."""
        return len(self.targets) if len(self.targets) > 1 else None

    def take(self, targets: Sequence[int]) -> Objective:
        """Return the objective with the targets of those images."""
        if not self.num_targets:
            return self
        return replace(self, targets=tuple(self.targets[number] for number in targets))

    def __str__(self) -> str:
        cells = (f"{unit},{y},{x}" for unit, (y, x) in self.targets)
        return f"{self.layer}[{'|'.join(cells)}]"


def _relu6_input(model: HookedModel, layer: str) -> str | None:
    """Return the layer that feeds the ReLU6 at the end of `layer`; None if there is none."""
    name = model.layers[layer].name
    for call in model.hooks.activations():
        if call.kind == "ReLU6" and name in call.after:
            return min((point for point in call.before if point in model.layers), default=None)
    return None


def _colourise(result: Attribution) -> list[Tensor]:
    """Return the explanation of each image as colours, `(3, H, W)` in [0, 1]."""
    if result.pixels is not None:
        return [around_grey(pixels) for pixels in result.pixels]
    return [colourise(heat, HeatScale.of(heat, signed=result.signed)) for heat in result.maps]
