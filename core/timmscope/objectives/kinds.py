"""The kinds of objective: class logit, prediction, channel, neuron, layer energy, direction.

The value of each image depends on that image only. Class objectives are logits before the softmax.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from timmscope.number_list import is_whole
from timmscope.objectives.algebra import Objective
from timmscope.safe_files import read_npy, why
from timmscope_registry import LayerNotFound, ObjectiveError
from timmscope_registry.hooks import Layer

if TYPE_CHECKING:
    from .model import ModelLike

LOGITS = "logits"


def class_logit(
    target: int | str | Sequence[int | str] | Tensor, y: int | None = None, x: int | None = None
) -> Objective:
    """Logit of a class, or of one class per image.

    Args:
        target: index or name of a class, or a sequence of B indices or names.
        y: row at which to read an output `(B, K, H, W)`, as of a segmentation model.
        x: its column.

    Raises:
        ObjectiveError: there is no class, or one is neither text nor an integer.
    """
    if isinstance(target, Tensor | np.ndarray):
        target = target.tolist()
    one = isinstance(target, str) or not isinstance(target, Iterable)
    targets = tuple(
        value if isinstance(value, str) else _integer(value, "a class")
        for value in ([target] if one else target)  # type: ignore[union-attr]
    )
    if not targets:
        raise ObjectiveError("class_logit got no classes: give one, or one per image")
    if y is None and x is None:
        return ClassLogit(targets)
    if y is None or x is None or len(targets) > 1:
        raise ObjectiveError(f"class_logit has y={y}, x={x}: give both or neither, for one class")
    return ClassAt(targets[0], (_integer(y, "a row"), _integer(x, "a column")))


def top() -> Objective:
    """Logit of the class that the model predicts for each image."""
    return Top()


def channel(layer: str, unit: int) -> Objective:
    """Mean of a unit over all positions of a layer (without prefix tokens)."""
    return Channel(layer, _integer(unit, "a unit"))


def neuron(layer: str, unit: int, y: int | None = None, x: int | None = None) -> Objective:
    """A unit at one cell of the layer's grid; by default its centre, `(h // 2, w // 2)`."""
    if (y is None) != (x is None):
        raise ObjectiveError(f"neuron of {layer} has y={y}, x={x}: give both or neither")
    cell = None if y is None or x is None else (_integer(y, "a row"), _integer(x, "a column"))
    return Neuron(layer, _integer(unit, "a unit"), cell)


def layer_energy(layer: str) -> Objective:
    """Mean square of a whole layer, which DeepDream maximises."""
    return LayerEnergy(layer)


def direction(layer: str, vector: Sequence[float] | Tensor | np.ndarray[Any, Any]) -> Objective:
    """Dot product of a layer's pooled activation with a vector `(channels,)`.

    For a unit vector along one axis it equals the `channel` objective of that unit.

    Raises:
        ObjectiveError: the vector is not one row of finite numbers.
    """
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
    return Direction(layer, tuple(float(value) for value in values))


def as_objective(value: Objective | str | int) -> Objective:
    """Convert a text form or a class index to an objective; an objective is returned unchanged.

    Raises:
        ObjectiveError: the value is none of these, or the text cannot be parsed.
    """
    if isinstance(value, Objective):
        return value
    if isinstance(value, int | np.integer):
        return class_logit(int(value))
    if not isinstance(value, str):
        raise ObjectiveError(
            f"{value!r} is not an objective: expected one, its text form or a class index "
            "(use class_logit([...]) for one class per image)"
        )
    from timmscope.objectives.text import parse_objective

    return parse_objective(value)


def _integer(value: object, label: str) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ObjectiveError(f"{label} must be a whole number, not {value!r}") from None


@dataclass(frozen=True)
class ClassLogit(Objective):
    """Logit of one class, or of one class per image."""

    targets: tuple[int | str, ...]

    def bind(self, model: ModelLike, images: Tensor | None) -> Objective:
        """Resolve class names to indices; a single target is for every image."""
        _require_logits(model)
        if model.num_classes == 0:
            raise ObjectiveError(
                f"{model.id} has no classes: choose a unit instead, for example "
                f"{_example_unit(model)}"
            )
        indices = tuple(_class_index(model, target) for target in self.targets)
        if images is not None and len(indices) not in (1, len(images)):
            raise ObjectiveError(
                f"{len(indices)} target classes for {len(images)} image(s): give one, or one per "
                "image"
            )
        return ClassLogit(indices)

    @property
    def points(self) -> tuple[str, ...]:
        """The model's output."""
        return (LOGITS,)

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """The logits, before any softmax."""
        logits = _at_least_float32(recording[LOGITS])
        if len(self.targets) == 1:
            return logits[:, self.targets[0]]  # type: ignore[index]
        index = torch.tensor(self.targets, device=logits.device)
        return logits.gather(1, index[:, None])[:, 0]

    @property
    def num_targets(self) -> int | None:
        """The number of targets, if there are several."""
        return len(self.targets) if len(self.targets) > 1 else None

    @property
    def classes(self) -> tuple[int, ...] | None:
        """The targets, once they are indices."""
        indices = tuple(target for target in self.targets if isinstance(target, int))
        return indices if len(indices) == len(self.targets) else None

    def rows(self, start: int, stop: int) -> Objective:
        """The targets of those images."""
        return self if len(self.targets) == 1 else ClassLogit(self.targets[start:stop])

    def repeated(self, times: int) -> Objective:
        """The targets of those images, repeated."""
        return self if len(self.targets) == 1 else ClassLogit(self.targets * times)

    def __str__(self) -> str:
        return "class:" + "|".join(_target_text(target) for target in self.targets)


@dataclass(frozen=True)
class ClassAt(Objective):
    """Logit of a class at one place of an output (B, K, H, W); binding makes it a neuron."""

    target: int | str
    position: tuple[int, int]

    def bind(self, model: ModelLike, images: Tensor | None) -> Objective:
        """Resolve the class name and check the place."""
        output = _output(model)
        if output.grid is None:
            raise ObjectiveError(
                f"the output of {model.id} has shape {('B', *output.shape)}, so a class has one "
                f"logit and no place: use class:{self.target}"
            )
        unit = _class_index(model, self.target)
        return Neuron(LOGITS, unit, self.position).bind(model, images)

    @property
    def points(self) -> tuple[str, ...]:
        """The model's output."""
        return (LOGITS,)

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """Raise `ObjectiveError`: only the bound objective has a value."""
        raise ObjectiveError(f"{self} must be bound to a model before it has a value")

    def __str__(self) -> str:
        return "class:{}@{},{}".format(_target_text(self.target), *self.position)


@dataclass(frozen=True)
class Top(Objective):
    """The prediction; binding turns it into class logits."""

    def bind(self, model: ModelLike, images: Tensor | None) -> Objective:
        """Run the model and return the logits of the predicted classes."""
        if images is None:
            raise ObjectiveError(
                "'top' is the prediction for an image, but there is no image: name a class or a "
                "unit"
            )
        return self.predictions(model, images)[0]

    @staticmethod
    def predictions(model: ModelLike, images: Tensor) -> tuple[ClassLogit, Tensor]:
        """Return the logits of the predicted classes, and their softmax probabilities `(B,)`."""
        ClassLogit((0,)).bind(model, None)  # raises an error if there are no logits
        with torch.no_grad():
            parts = images.detach().split(64)  # a large batch may not fit into memory
            logits = torch.cat([_at_least_float32(model(part)) for part in parts])
        best = logits.argmax(1)
        shares = logits.softmax(1).gather(1, best[:, None])[:, 0]
        return ClassLogit(tuple(best.tolist())), shares

    @property
    def points(self) -> tuple[str, ...]:
        """The model's output."""
        return (LOGITS,)

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """Raise `ObjectiveError`: only the bound objective has a value."""
        raise ObjectiveError("'top' must be bound to a model and images before it has a value")

    def __str__(self) -> str:
        return "top"


@dataclass(frozen=True)
class _LayerObjective(Objective):
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

    def _checked(self, layer: Layer, images: Tensor | None) -> _LayerObjective:
        """Check the objective against its layer; returns a copy, with defaults filled in."""
        return replace(self)

    def _bound_layer(self) -> Layer:
        if self._bound_to is None:
            raise ObjectiveError(f"{self} must be bound to a model before it has a value")
        return self._bound_to

    def _spatial(self, recording: Mapping[str, Tensor]) -> Tensor:
        """The layer's activation as (B, C, h, w)."""
        return _at_least_float32(self._bound_layer().spatial(recording[self.layer]))


def _check_unit(layer: Layer, unit: int) -> None:
    if not 0 <= unit < layer.channels:
        raise ObjectiveError(
            f"layer {layer.name!r} has units 0 to {layer.channels - 1}, there is no unit {unit}"
        )


@dataclass(frozen=True)
class Channel(_LayerObjective):
    """Mean of a unit over positions."""

    unit: int = 0

    def _checked(self, layer: Layer, images: Tensor | None) -> _LayerObjective:
        _check_unit(layer, self.unit)
        return replace(self)

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """The unit's spatial mean."""
        return self._spatial(recording)[:, self.unit].mean((1, 2))

    def __str__(self) -> str:
        return f"{_layer_text(self.layer)}[{self.unit}]"


@dataclass(frozen=True)
class Neuron(_LayerObjective):
    """A unit at one position."""

    unit: int = 0
    position: tuple[int, int] | None = None

    def _checked(self, layer: Layer, images: Tensor | None) -> _LayerObjective:
        _check_unit(layer, self.unit)
        if images is not None and layer.stride is not None and layer.grid is not None:
            catalogued = [
                step * cells for step, cells in zip(layer.stride, layer.grid, strict=True)
            ]
            if [*map(round, catalogued)] != [*images.shape[2:]]:
                return replace(self)  # the grid of images of another size shows in the forward
        size = layer.grid or (1, 1)
        return replace(self, position=self._cell(size))

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

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """The unit at that cell."""
        activation = self._spatial(recording)
        y, x = self._cell((activation.shape[2], activation.shape[3]))
        return activation[:, self.unit, y, x]

    def __str__(self) -> str:
        place = "centre" if self.position is None else "{},{}".format(*self.position)
        return f"{_layer_text(self.layer)}[{self.unit},{place}]"


@dataclass(frozen=True)
class LayerEnergy(_LayerObjective):
    """Mean square of a layer."""

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """The mean square."""
        return self._spatial(recording).square().mean((1, 2, 3))

    def __str__(self) -> str:
        return _name_text(self.layer)


@dataclass(frozen=True)
class Direction(_LayerObjective):
    """Dot product of the pooled activation with a vector."""

    vector: tuple[float, ...] = ()

    def _checked(self, layer: Layer, images: Tensor | None) -> _LayerObjective:
        if len(self.vector) != layer.channels:
            raise ObjectiveError(
                f"the direction has {len(self.vector)} numbers, but layer {layer.name!r} has "
                f"{layer.channels} channels"
            )
        return replace(self)

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """The dot product."""
        activation = self._spatial(recording).mean((2, 3))
        return activation @ torch.tensor(self.vector).to(activation)

    def __str__(self) -> str:
        return f"{_layer_text(self.layer)}@{json.dumps(self.vector)}"


@dataclass(frozen=True)
class LayerOrClass(Objective):
    """A name without a form: the energy of the layer of that name if there is one, else a class."""

    name: str

    def bind(self, model: ModelLike, images: Tensor | None) -> Objective:
        """Look among the layers, then among the classes."""
        if self.name in model.layers:
            return LayerEnergy(self.name).bind(model, images)
        try:
            return ClassLogit((self.name,)).bind(model, images)
        except ObjectiveError as no_class:
            if " " in self.name or "names several" in str(no_class):
                raise
            try:
                model.layers[self.name]
            except LayerNotFound as no_layer:
                names = ", ".join(repr(item) for item in no_layer.nearest[:3])
                raise ObjectiveError(
                    f"{self.name!r} is not a layer{f' (nearest: {names})' if names else ''}, "
                    f"and {no_class}"
                ) from None
            raise

    @property
    def points(self) -> tuple[str, ...]:
        """Unknown before binding."""
        return ()

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """Raise `ObjectiveError`: only the bound objective has a value."""
        raise ObjectiveError(f"{self.name!r} must be bound to a model before it has a value")

    def __str__(self) -> str:
        return _name_text(self.name)


def _at_least_float32(activation: Tensor) -> Tensor:
    return activation if activation.dtype == torch.float64 else activation.float()


def load_direction(layer: str, path: str) -> Objective:
    """Load a direction from a `.npy` file with one row.

    Raises:
        ObjectiveError: the file cannot be read or has something else.
    """
    try:
        return direction(layer, read_npy(path))
    except (OSError, ValueError) as error:
        raise ObjectiveError(f"cannot read a direction from {path}: {why(error)}") from error


_SIGNS = re.compile(r'[|*@"\[\]]|\s[+-]\s|^[+-]|[+-]$|^\s|\s$|^class:|^$')
_PLACES = re.compile(r"(\[[\w.]+\])+$")


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _target_text(target: int | str) -> str:
    """A class in the text form, in quotes if its name holds signs."""
    if isinstance(target, int) or _is_quoted(target) or not _SIGNS.search(target):
        return str(target)
    return _quoted(target)


def _layer_text(name: str) -> str:
    """The name of a layer before a unit or direction, in quotes if it holds signs."""
    return _quoted(name) if _SIGNS.search(_PLACES.sub("", name)) else name


def _name_text(name: str) -> str:
    """A name that stands alone, in quotes if it would be read as something else."""
    other = name == "top" or is_whole(name)
    return _quoted(name) if other or _SIGNS.search(name) else name


def _is_quoted(target: str) -> bool:
    """Whether a class is named by digits in quotes, and is not the class of that index."""
    return (
        target.startswith('"') and target.endswith('"') and is_whole(target[1:-1].removeprefix("-"))
    )


def _output(model: ModelLike) -> Layer:
    """The model's output.

    Raises:
        ObjectiveError: it is not one tensor.
    """
    try:
        return model.layers[LOGITS]
    except LayerNotFound as error:
        raise ObjectiveError(
            f"{model.id} has no logits (B, K): {error}; explain a unit of one of its tensors, as "
            "in out[0][3]"
        ) from None


def _require_logits(model: ModelLike) -> None:
    output = _output(model)
    if output.layout != "vector":
        raise ObjectiveError(
            f"the output of {model.id} has shape {('B', *output.shape)}, and a class has a logit "
            "at each place: name a place, as in class:3@y,x, or take the mean of all, logits[3]"
        )


def _class_index(model: ModelLike, target: int | str) -> int:
    if isinstance(target, str):
        name = target[1:-1] if _is_quoted(target) else target
        if name == target and is_whole(target.removeprefix("-")):
            target = int(target)
        elif model.classes is None:
            raise ObjectiveError(
                f"{model.id} has {model.num_classes} classes without names: "
                f"use a number instead of {name!r}"
            )
        else:
            target = model.classes.find(name)
    if not 0 <= target < model.num_classes:
        raise ObjectiveError(
            f"{model.id} has classes 0 to {model.num_classes - 1}, there is no class {target}"
        )
    return target


def _example_unit(model: ModelLike) -> str:
    layers = [layer for layer in model.layers.values() if layer.grid is not None]
    return f"{layers[-1].name}[0]" if layers else "a layer's unit, LAYER[UNIT]"
