"""`CellAttributions` explains units at cells: each image its own unit and cell, in one pass."""

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

AT_ONCE = 16
"""Images explained together."""
_CEILING = 6.0
"""Of a ReLU6."""
_PATIENCE = 16
"""Refusals in a row after which a technique counts as unfit for the model."""


class CellAttributions:
    """Explains units at cells, in pictures.

    At the ceiling of a ReLU6, where a unit's strongest cells are, no gradient passes. There the
    value before the activation is explained.

    Args:
        model: the model.
        layer: name of the layer.
        technique: an attribution, or its text.

    Attributes:
        refusal: the first of the technique's; None while there was none.
        refused: how many images it has refused.

    Raises:
        ParameterError: the technique is no attribution.
    """

    def __init__(
        self, model: HookedModel, layer: str, technique: AttributionTechnique | str
    ) -> None:
        self._explain = attribution(technique) if isinstance(technique, str) else technique
        if not isinstance(self._explain, AttributionTechnique):
            raise ParameterError(f"{technique!r} is no attribution", parameter="view")
        self._model = model
        self._layer = model.layers[layer].name
        self._below = _below_the_ceiling(model, layer)
        self.refusal: TimmscopeError | None = None
        self.refused = self._explained = 0

    @property
    def title(self) -> str:
        """Name of the technique."""
        return self._explain.title()

    @property
    def unfit(self) -> bool:
        """Whether the technique has refused many images and explained none."""
        return self.refused >= _PATIENCE and not self._explained

    @property
    def some(self) -> bool:
        """Whether it has explained any image."""
        return self._explained > 0

    def of(
        self,
        images: Tensor,
        cells: Sequence[tuple[int, tuple[int, int]]],
        values: Sequence[float],
    ) -> list[Tensor]:
        """Pictures `(3, H, W)` in [0, 1], grey where there is no explanation.

        Args:
            images: `(B, 3, H, W)` in [0, 1].
            cells: unit, and row and column of its cell, one per image.
            values: of the unit at the cell.
        """
        capped = [self._below is not None and value >= _CEILING for value in values]
        found: dict[int, Tensor] = {}
        for below in (False, True):
            rows = [row for row, is_capped in enumerate(capped) if is_capped == below]
            if rows:
                layer = self._below if below and self._below is not None else self._layer
                parts = self._explained_at(layer, images[rows], [cells[row] for row in rows])
                found |= zip(rows, parts, strict=True)
        return [found[row] for row in range(len(images))]

    def _explained_at(
        self, layer: str, images: Tensor, cells: Sequence[tuple[int, tuple[int, int]]]
    ) -> list[Tensor]:
        try:
            with quiet():
                result = self._explain(self._model, images, _Cells(layer, tuple(cells)))
        except (TechniqueError, ModelError, UnsupportedModel) as error:
            if len(images) > 1:  # another image may be explained all the same
                return [
                    picture
                    for row, cell in enumerate(cells)
                    for picture in self._explained_at(layer, images[row : row + 1], [cell])
                ]
            if layer != self._layer:
                return self._explained_at(self._layer, images, cells)
            self.refusal = self.refusal or error
            self.refused += 1
            return [torch.full((3, *images.shape[2:]), 0.5)]
        self._explained += len(images)
        return _coloured(result)


@dataclass(frozen=True)
class _Cells(Objective):
    """A unit at a cell of a layer, one for all images or one for each."""

    layer: str
    targets: tuple[tuple[int, tuple[int, int]], ...]
    at: Layer | None = field(default=None, repr=False, compare=False)

    def bind(self, model: ModelLike, images: Tensor | None) -> Objective:
        """Find the layer; units and cells come from a store of it."""
        return replace(self, at=model.layers[self.layer])

    @property
    def points(self) -> tuple[str, ...]:
        """The layer."""
        return (self.layer,)

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """The unit at the cell, of each image."""
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
        """One per image, unless there is one for all."""
        return len(self.targets) if len(self.targets) > 1 else None

    def rows(self, start: int, stop: int) -> Objective:
        """The targets of those images."""
        one = len(self.targets) == 1
        return self if one else replace(self, targets=self.targets[start:stop])

    def repeated(self, times: int) -> Objective:
        """The targets of those images, `times` over."""
        return self if len(self.targets) == 1 else replace(self, targets=self.targets * times)

    def __str__(self) -> str:
        cells = (f"{unit},{y},{x}" for unit, (y, x) in self.targets)
        return f"{self.layer}[{'|'.join(cells)}]"


def _below_the_ceiling(model: HookedModel, layer: str) -> str | None:
    """The layer whose output is the input of the ReLU6 that `layer` ends with, if there is one."""
    name = model.layers[layer].name
    for call in model.hooks.activations():
        if call.kind == "ReLU6" and name in call.after:
            return min((point for point in call.before if point in model.layers), default=None)
    return None


def _coloured(result: Attribution) -> list[Tensor]:
    """The explanation of each image, `(3, H, W)` in [0, 1]."""
    if result.pixels is not None:
        return [around_grey(pixels) for pixels in result.pixels]
    return [colourise(heat, HeatScale.of(heat, signed=result.signed)) for heat in result.maps]
