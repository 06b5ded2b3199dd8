"""Objectives of a class: its logit before the softmax, the prediction, a name of either kind.

The value of each image depends on that image only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from timmscope.draws import image_rows
from timmscope.number_list import is_whole
from timmscope.objectives.algebra import Objective
from timmscope.objectives.layer_objectives import (
    LayerEnergy,
    Neuron,
    at_least_float32,
    whole_number,
)
from timmscope.objectives.names import is_quoted_number, name_text, target_text
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
        value if isinstance(value, str) else whole_number(value, "a class")
        for value in ([target] if one else target)  # type: ignore[union-attr]
    )
    if not targets:
        raise ObjectiveError("class_logit got no classes: give one, or one per image")
    if y is None and x is None:
        return ClassLogit(targets)
    if y is None or x is None or len(targets) > 1:
        raise ObjectiveError(f"class_logit has y={y}, x={x}: give both or neither, for one class")
    return ClassAt(targets[0], (whole_number(y, "a row"), whole_number(x, "a column")))


def top() -> Objective:
    """Logit of the class that the model predicts for each image."""
    return Top()


def probability(
    target: Objective | int | str | Sequence[int | str] | Tensor,
    y: int | None = None,
    x: int | None = None,
) -> Objective:
    """Softmax probability of a class, in [0, 1]; `p(class:282)` as text.

    Its gradient vanishes where the model is certain; that of `log_probability` does not.

    Args:
        target: class or classes as for `class_logit`, or `top()`.
        y: row at which to read an output `(B, K, H, W)`.
        x: its column.

    Raises:
        ObjectiveError: the target is no class, as for `class_logit`.
    """
    return Softmax(_class_objective(target, y, x))


def log_probability(
    target: Objective | int | str | Sequence[int | str] | Tensor,
    y: int | None = None,
    x: int | None = None,
) -> Objective:
    """Logarithm of the softmax probability of a class; `logp(class:282)` as text.

    It is minus the cross-entropy. Arguments and errors are those of `probability`.
    """
    return Softmax(_class_objective(target, y, x), log=True)


def _class_objective(
    target: Objective | int | str | Sequence[int | str] | Tensor, y: int | None, x: int | None
) -> Objective:
    if not isinstance(target, Objective):
        return class_logit(target, y, x)
    if isinstance(target, LayerOrClass):
        target = ClassLogit((target.name,))
    if y is not None or x is not None or not isinstance(target, ClassLogit | ClassAt | Top):
        raise ObjectiveError(
            f"only a class has a probability, not {target}: give a class, or 'top'"
        )
    return target


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
        logits = at_least_float32(recording[LOGITS])
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

    def take(self, targets: Sequence[int]) -> Objective:
        """The classes of those images."""
        return ClassLogit(tuple(self.targets[i] for i in targets)) if self.num_targets else self

    def __str__(self) -> str:
        return "class:" + "|".join(target_text(target) for target in self.targets)


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
        return "class:{}@{},{}".format(target_text(self.target), *self.position)


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
            parts = []
            for start in range(0, len(images), 64):  # a large batch may not fit into memory
                part = images[start : start + 64].detach()
                with image_rows(range(start, start + len(part))):
                    parts.append(at_least_float32(model(part)))
            logits = torch.cat(parts)
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
class Softmax(Objective):
    """Softmax probability of a class, or its logarithm.

    Attributes:
        of: the class, as an objective that reads one of the logits.
        log: whether the value is the logarithm.
    """

    of: Objective
    log: bool = False

    def bind(self, model: ModelLike, images: Tensor | None) -> Objective:
        """Bind the class."""
        of = self.of.bind(model, images)
        if _output(model).channels < 2:
            raise ObjectiveError(
                f"{model.id} has one logit, so the softmax is 1 for every image: use its logit, "
                f"{of}"
            )
        return Softmax(of, self.log)

    @property
    def points(self) -> tuple[str, ...]:
        """The model's output."""
        return (LOGITS,)

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """The class's entry of the softmax over all classes."""
        logits = at_least_float32(recording[LOGITS])
        axis = self.of.unit_axis if isinstance(self.of, Neuron) else 1
        value = self.of({LOGITS: logits.log_softmax(axis)})
        return value if self.log else value.exp()

    @property
    def num_targets(self) -> int | None:
        """The number of classes, if there are several."""
        return self.of.num_targets

    def take(self, targets: Sequence[int]) -> Objective:
        """The classes of those images."""
        return Softmax(self.of.take(targets), self.log)

    def __str__(self) -> str:
        of = str(self.of)
        if isinstance(self.of, Neuron) and self.of.position is not None:  # a bound ClassAt
            of = str(ClassAt(self.of.unit, self.of.position))
        return f"{'logp' if self.log else 'p'}({of})"


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
        return name_text(self.name)


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
        name = target[1:-1] if is_quoted_number(target) else target
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
