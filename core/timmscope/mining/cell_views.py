"""Explains units at cells, another unit and cell for each image, in one forward and backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from timmscope.objectives import Objective
from timmscope_registry import ParameterError, TechniqueError

if TYPE_CHECKING:
    from timmscope.models import HookedModel
    from timmscope.techniques import Attribution, AttributionTechnique
    from timmscope_registry.hooks import Layer

AT_ONCE = 16
"""Images explained together."""
_PATIENCE = 16
"""Refusals in a row after which a technique counts as unfit for the model."""


class Views:
    """Explains units at cells, in pictures.

    At the ceiling of a ReLU6, where a unit's strongest cells are, no gradient passes. There the
    value before the activation is explained: below the ceiling its gradient is the unit's own.

    Args:
        model: the model.
        layer: name of the layer.
        technique: an attribution, or its text.

    Attributes:
        refusal: the first of the technique's; None while there was none.

    Raises:
        ParameterError: the technique is no attribution.
    """

    def __init__(
        self, model: HookedModel, layer: str, technique: AttributionTechnique | str
    ) -> None:
        from timmscope.techniques import AttributionTechnique
        from timmscope.techniques.text import attribution

        self._explain = attribution(technique) if isinstance(technique, str) else technique
        if not isinstance(self._explain, AttributionTechnique):
            raise ParameterError(f"{technique!r} is no attribution", parameter="view")
        self._model = model
        self._layer, self._open = model.layers[layer], True
        if (lower := _below_the_ceiling(model, layer)) is not None:
            self._layer, self._open = lower, False
        self.refusal: TechniqueError | None = None
        self._refused = self._explained = 0

    @property
    def title(self) -> str:
        """Name of the technique."""
        return self._explain.title()

    @property
    def unfit(self) -> bool:
        """Whether the technique has refused many images and explained none."""
        return self._refused >= _PATIENCE and not self._explained

    @property
    def some(self) -> bool:
        """Whether it has explained any image."""
        return self._explained > 0

    def of(self, images: Tensor, cells: Sequence[tuple[int, tuple[int, int]]]) -> list[Tensor]:
        """Pictures `(3, H, W)` in [0, 1], grey where there is no explanation.

        Args:
            images: `(B, 3, H, W)` in [0, 1].
            cells: unit, and row and column of its cell, one an image.
        """
        goal = _Cells(self._layer.name, tuple(cells))
        try:
            result = self._explain(self._model, images, goal)
        except TechniqueError as error:
            if len(images) > 1:  # one image's refusal is not the others'
                return [
                    picture
                    for row, cell in enumerate(cells)
                    for picture in self.of(images[row : row + 1], [cell])
                ]
            self.refusal = self.refusal or error
            self._refused += 1
            return [torch.full_like(images[0], 0.5)]
        self._explained += len(images)
        pictures = _coloured(result)
        if self._open:
            return pictures
        silent = (result.scores <= 0).tolist()  # nothing comes through the activation there
        return [
            torch.full_like(picture, 0.5) if mute else picture
            for picture, mute in zip(pictures, silent, strict=True)
        ]

    def require_some(self) -> None:
        """Raise the refusal where not one image was explained."""
        if self.refusal is not None and not self._explained:
            raise self.refusal


@dataclass(frozen=True)
class _Cells(Objective):
    """A unit at a cell of a layer, another one for each image."""

    layer: str
    targets: tuple[tuple[int, tuple[int, int]], ...]
    at: Layer | None = field(default=None, repr=False, compare=False)

    def bind(self, model: HookedModel, images: Tensor | None) -> Objective:
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
        if self.at.grid is None:
            picked = [maps[row, unit, 0, 0] for row, (unit, _) in enumerate(self.targets)]
        else:
            picked = [maps[row, unit, y, x] for row, (unit, (y, x)) in enumerate(self.targets)]
        return torch.stack(picked).to(torch.promote_types(maps.dtype, torch.float32))

    @property
    def images_named(self) -> int | None:
        """One an image."""
        return len(self.targets)

    def rows(self, start: int, stop: int) -> Objective:
        """The targets of those images."""
        return replace(self, targets=self.targets[start:stop])

    def repeated(self, times: int) -> Objective:
        """The targets of those images, `times` over."""
        return replace(self, targets=self.targets * times)

    def __str__(self) -> str:
        cells = (f"{unit},{y},{x}" for unit, (y, x) in self.targets)
        return f"{self.layer}[{'|'.join(cells)}]"


def _below_the_ceiling(model: HookedModel, layer: str) -> Layer | None:
    """What the ReLU6 that a layer ends with is given, where a layer of the model returns that."""
    name = model.layers[layer].name
    for call in model.hooks.activations():
        if call.kind == "ReLU6" and name in call.after:
            given = sorted(point for point in call.before if point in model.layers)
            return model.layers[given[0]] if given else None
    return None


def _coloured(result: Attribution) -> list[Tensor]:
    """The explanation of each image, `(3, H, W)` in [0, 1]."""
    from timmscope.figures import HeatScale, around_grey, colourise

    if result.pixels is not None:
        return [around_grey(pixels) for pixels in result.pixels]
    return [colourise(heat, HeatScale.of(heat, signed=result.signed)) for heat in result.maps]
