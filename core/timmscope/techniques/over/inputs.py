"""The arguments of a call as a run over an image set needs them: for some images, and as a record.

An argument that may hold one value per image is cut to the images of a chunk; images with a second
role are opened once.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import timmscope.checked_json as checked_json
from timmscope.images import ImageSource
from timmscope.models import HookedModel
from timmscope.objectives import Objective, as_objective
from timmscope.results.result import to_json
from timmscope.techniques.arguments import Argument, call_arguments
from timmscope.techniques.training.data import class_names, classes_of, labels_of
from timmscope_registry import ParameterError, did_you_mean

if TYPE_CHECKING:
    from timmscope.techniques.over.base import PerImageTechnique

_OF_RUN = ("model", "seed", "batch_size")
"""Arguments of the call that are arguments of the run as well."""


@dataclass(frozen=True)
class Inputs:
    """The arguments of a call, without model, images, seed and batch size.

    Attributes:
        common: arguments that are the same for all images.
        each: arguments with one value for each of all images.
        record: all of them as JSON values.
    """

    common: dict[str, Any]
    each: dict[str, Any]
    record: dict[str, Any]

    @classmethod
    def of(
        cls,
        technique: PerImageTechnique,
        model: HookedModel | None,
        source: ImageSource,
        given: Mapping[str, Any],
        use_labels: bool,
    ) -> Inputs:
        """Check and open the arguments.

        Args:
            technique: the technique.
            model: its model, if it takes one.
            source: the images.
            given: arguments of its call by name.
            use_labels: whether the labels of the image set are the argument `labels`.

        Raises:
            ParameterError: there is no such argument, or it has values for fewer or more images.
            ObjectiveError: the objective does not fit the model.
        """
        known = {
            argument.parameter.name: argument
            for argument in call_arguments(type(technique))
            if argument.parameter.name not in (*_OF_RUN, technique.over_argument)
        }
        for name in given:
            if name not in known:
                raise ParameterError(
                    f"{technique.title()} over an image set takes no {name!r}"
                    f"{did_you_mean(name, known)}; it takes {', '.join(known) or 'nothing else'}",
                    parameter=name,
                )
        common: dict[str, Any] = {}
        each: dict[str, Any] = {}
        record: dict[str, Any] = {}
        for name, argument in known.items():
            value = given.get(name, argument.parameter.default)
            if value is inspect.Parameter.empty:
                raise ParameterError(
                    f"{technique.title()} over an image set needs {name}", parameter=name
                )
            if name == "labels" and use_labels:
                value = _own_labels(technique, model, source, value)
            value, record[name], for_each = _opened(name, argument, value, model, len(source))
            (each if for_each else common)[name] = value
        if use_labels and "labels" not in known:
            raise ParameterError(f"{technique.title()} takes no labels", parameter="use_labels")
        return cls(common, each, record)

    def of_images(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Return the arguments of a call with these images."""
        return self.common | {
            name: values.take(numbers)
            if isinstance(values, Objective)
            else [values[number] for number in numbers]
            for name, values in self.each.items()
        }


def _own_labels(
    technique: PerImageTechnique, model: HookedModel | None, source: ImageSource, labels: Any
) -> list[int]:
    if labels is not None:
        raise ParameterError(
            "use_labels takes the labels of the images: leave labels out", parameter="use_labels"
        )
    if model is None:
        raise ParameterError(f"{technique.title()} takes no labels", parameter="use_labels")
    known = labels_of(source)
    found: list[int] = classes_of(model, class_names(model, known), known).tolist()
    return found


def _opened(
    name: str, argument: Argument, value: Any, model: HookedModel | None, count: int
) -> tuple[Any, Any, bool]:
    """Return an argument, its record, and whether it has one value per image."""
    if argument.kind in ("objective", "objective to reach") and value is not None:
        target = as_objective(value)
        target = target if model is None else target.resolve(model)
        if target.num_targets in (None, 1):
            return target, str(target), False
        _require_one_each(name, target.num_targets or 0, count)
        return target, _digest(str(target)), True
    if argument.kind == "classes" and isinstance(value, list | tuple | Tensor):
        classes = value.tolist() if isinstance(value, Tensor) else list(value)
        if isinstance(classes, list) and len(classes) != 1:
            _require_one_each(name, len(classes), count)
            return classes, _digest(classes), True
    if argument.kind == "other images" and value is not None:
        from timmscope.techniques.style import opened_styles

        pictures = opened_styles(model, value)
        return pictures, [_digest(picture) for picture in pictures], False
    return value, to_json(value), False


def _require_one_each(name: str, values: int, images: int) -> None:
    if values != images:
        raise ParameterError(
            f"{values} {name} for {images} images: give one, or one for each", parameter=name
        )


def _digest(value: Any) -> str:
    """Return a short text that stands for many values."""
    if isinstance(value, torch.Tensor):
        data = value.cpu().contiguous().numpy().tobytes()
        shape = "×".join(map(str, value.shape))
        return f"{shape} of SHA-256 {hashlib.sha256(data).hexdigest()}"
    return f"one per image, of SHA-256 {checked_json.digest_of({'values': to_json(value)})}"
