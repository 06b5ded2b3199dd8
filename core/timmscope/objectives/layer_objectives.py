"""Objectives of a layer: a unit's mean, a neuron, the layer's energy, a direction.

The value of each image depends on that image only.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from timmscope.objectives.algebra import Objective
from timmscope.objectives.names import layer_text, name_text
from timmscope.safe_files import read_npy, why
from timmscope_registry import ObjectiveError
from timmscope_registry.hooks import Layer

if TYPE_CHECKING:
    from .model import ModelLike


def channel(layer: str, unit: int) -> Objective:
    """Mean of a unit over all positions of a layer (without prefix tokens)."""
    return Channel(layer, whole_number(unit, "a unit"))


def neuron(layer: str, unit: int, y: int | None = None, x: int | None = None) -> Objective:
    """A unit at one cell of the layer's grid; by default its centre, `(h // 2, w // 2)`."""
    if (y is None) != (x is None):
        raise ObjectiveError(f"neuron of {layer} has y={y}, x={x}: give both or neither")
    cell = (
        None if y is None or x is None else (whole_number(y, "a row"), whole_number(x, "a column"))
    )
    return Neuron(layer, whole_number(unit, "a unit"), cell)


def layer_energy(layer: str) -> Objective:
    """Mean square of a whole layer, which DeepDream maximises."""
    return LayerEnergy(layer)


def direction(layer: str, vector: Sequence[float] | Tensor | np.ndarray[Any, Any]) -> Objective:
    """Dot product of a layer's pooled activation with a vector `(channels,)`.

    For a unit vector along one axis it equals the `channel` objective of that unit.

    Raises:
        ObjectiveError: the vector is not one row of finite numbers.
    """
    return Direction(layer, _row_of_numbers(vector))


def cosine(
    layer: str,
    vector: Sequence[float] | Tensor | np.ndarray[Any, Any],
    power: float | None = None,
) -> Objective:
    """Cosine of a layer's pooled activation with a vector `(channels,)`.

    A dot product can grow with the activation's length alone; a cosine cannot, but is flat near its
    maximum. With a power p the value is `dot · max(cos, 0.1)^p`, which has both (Lucid).

    Raises:
        ObjectiveError: the vector is not one row of finite numbers, or is zero.
    """
    values = _row_of_numbers(vector)
    if not any(values):
        raise ObjectiveError("a direction must not be zero: its cosine is not defined")
    return Cosine(layer, values, power)


def load_direction(path: str) -> np.ndarray[Any, Any]:
    """Load a direction from a `.npy` file with one row.

    Raises:
        ObjectiveError: the file cannot be read or has something else.
    """
    try:
        return read_npy(path)
    except (OSError, ValueError) as error:
        raise ObjectiveError(f"cannot read a direction from {path}: {why(error)}") from error


def _row_of_numbers(vector: Any) -> tuple[float, ...]:
    if isinstance(vector, Tensor):
        vector = vector.detach().cpu().double().numpy()
    try:
        values = np.asarray(vector, float)
    except (TypeError, ValueError) as error:
        raise ObjectiveError(f"a direction must be one row of finite numbers: {error}") from None
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ObjectiveError(
            f"a direction must be one row of finite numbers, not an array of shape {values.shape}"
        )
    return tuple(float(value) for value in values)


def whole_number(value: object, label: str) -> int:
    """Return a whole number of any type as an int.

    Raises:
        ObjectiveError: it is none; the message begins with the label.
    """
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ObjectiveError(f"{label} must be a whole number, not {value!r}") from None


def at_least_float32(activation: Tensor) -> Tensor:
    """Return half-precision activations as float32; others as they are."""
    return activation if activation.dtype == torch.float64 else activation.float()


@dataclass(frozen=True)
class LayerObjective(Objective):
    """An objective that reads one layer; its value needs the layer that binding finds."""

    layer: str
    _bound_to: Layer | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def points(self) -> tuple[str, ...]:
        """The layer."""
        return (self.layer,)

    def bind(self, model: ModelLike, images: Tensor | None) -> Objective:
        """Find the layer and check the unit."""
        layer = model.layers[self.layer]
        bound = self._checked(layer, images)
        object.__setattr__(bound, "_bound_to", layer)
        return bound

    def at_layers(self, layers: Mapping[str, str]) -> Objective:
        """The same of another layer, if this one is named."""
        return replace(self, layer=layers.get(self.layer, self.layer))

    def _checked(self, layer: Layer, images: Tensor | None) -> LayerObjective:
        """Check the objective against its layer; returns a copy, with defaults filled in."""
        return replace(self)

    def _bound_layer(self) -> Layer:
        if self._bound_to is None:
            raise ObjectiveError(f"{self} must be bound to a model before it has a value")
        return self._bound_to

    def _spatial(self, recording: Mapping[str, Tensor]) -> Tensor:
        """The layer's activation as (B, C, h, w)."""
        return at_least_float32(self._bound_layer().spatial(recording[self.layer]))


def has_catalogued_grid(layer: Layer, images: Tensor) -> bool:
    """Return whether a layer's grid for images of this size is the one in the catalogue."""
    if layer.stride is None or layer.grid is None:
        return True
    sides = (step * cells for step, cells in zip(layer.stride, layer.grid, strict=True))
    return [*map(round, sides)] == [*images.shape[2:]]


def _check_unit(layer: Layer, unit: int) -> None:
    if not 0 <= unit < layer.channels:
        raise ObjectiveError(
            f"layer {layer.name!r} has units 0 to {layer.channels - 1}, there is no unit {unit}"
        )


@dataclass(frozen=True)
class Channel(LayerObjective):
    """Mean of a unit over positions."""

    unit: int = 0

    def _checked(self, layer: Layer, images: Tensor | None) -> LayerObjective:
        _check_unit(layer, self.unit)
        return replace(self)

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """The unit's spatial mean."""
        return self._spatial(recording)[:, self.unit].mean((1, 2))

    def __str__(self) -> str:
        return f"{layer_text(self.layer)}[{self.unit}]"


@dataclass(frozen=True)
class Neuron(LayerObjective):
    """A unit at one position."""

    unit: int = 0
    position: tuple[int, int] | None = None

    def _checked(self, layer: Layer, images: Tensor | None) -> LayerObjective:
        _check_unit(layer, self.unit)
        if images is not None and not has_catalogued_grid(layer, images):
            return replace(self)  # the grid of these images shows in the forward
        return replace(self, position=self._cell(layer.grid or (1, 1)))

    def _cell(self, size: tuple[int, int]) -> tuple[int, int]:
        """The cell on a grid of that size.

        Raises:
            ObjectiveError: the grid has no such cell.
        """
        (height, width), position = size, self.position
        if position is None:
            return height // 2, width // 2
        if not (0 <= position[0] < height and 0 <= position[1] < width):
            raise ObjectiveError(
                f"layer {self.layer!r} has a grid of {height}×{width} cells, there is no cell "
                f"({position[0]}, {position[1]})"
            )
        return position

    @property
    def unit_axis(self) -> int:
        """The axis of units in the layer's own tensor."""
        return 1 if self._bound_layer().layout in ("NCHW", "vector") else -1

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """The unit at that cell."""
        activation = self._spatial(recording)
        y, x = self._cell((activation.shape[2], activation.shape[3]))
        return activation[:, self.unit, y, x]

    def __str__(self) -> str:
        place = "centre" if self.position is None else "{},{}".format(*self.position)
        return f"{layer_text(self.layer)}[{self.unit},{place}]"


@dataclass(frozen=True)
class LayerEnergy(LayerObjective):
    """Mean square of a layer."""

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """The mean square."""
        return self._spatial(recording).square().mean((1, 2, 3))

    def __str__(self) -> str:
        return name_text(self.layer)


@dataclass(frozen=True)
class VectorObjective(LayerObjective):
    """An objective that compares the pooled activation with a vector."""

    vector: tuple[float, ...] = ()

    def _checked(self, layer: Layer, images: Tensor | None) -> LayerObjective:
        if len(self.vector) != layer.channels:
            raise ObjectiveError(
                f"the direction has {len(self.vector)} numbers, but layer {layer.name!r} has "
                f"{layer.channels} channels"
            )
        return replace(self)

    def __str__(self) -> str:
        return f"{layer_text(self.layer)}@{json.dumps(self.vector)}"


@dataclass(frozen=True)
class Direction(VectorObjective):
    """Dot product of the pooled activation with a vector."""

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """The dot product."""
        activation = self._spatial(recording).mean((2, 3))
        return activation @ torch.tensor(self.vector).to(activation)


_LEAST_COSINE = 0.1
"""A smaller cosine counts as this where it is a factor, so that a gradient leads out of it."""


@dataclass(frozen=True)
class Cosine(VectorObjective):
    """Cosine of the pooled activation with a vector, or a dot product that a cosine weighs."""

    power: float | None = None

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """The cosine, or the weighted dot product."""
        activation = self._spatial(recording).mean((2, 3))
        vector = torch.tensor(self.vector).to(activation)
        dot = activation @ vector
        length = (activation.square().sum(1) + 1e-12).sqrt() * vector.norm()
        value: Tensor = dot / length
        if self.power is not None:
            value = dot * value.clamp(min=_LEAST_COSINE) ** self.power
        return value

    def __str__(self) -> str:
        power = "" if self.power is None else f", {self.power!r}"
        return f"cosine({super().__str__()}{power})"
