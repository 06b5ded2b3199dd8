"""`match` compares a layer's activation with a target: that of another image, or a stored row.

Attribution explains what makes an image similar to the target, synthesis inverts the target, and an
attack moves an image towards it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from timmscope.draws import image_rows
from timmscope.images.digests import image_sha256, values_sha256
from timmscope.objectives.algebra import Objective
from timmscope.objectives.layer_objectives import (
    LayerObjective,
    at_least_float32,
    has_catalogued_grid,
)
from timmscope.objectives.names import file_text, layer_text
from timmscope.safe_files import read_npy, why
from timmscope_registry import ObjectiveError

if TYPE_CHECKING:
    from timmscope_registry.hooks import Layer

    from .model import ModelLike

Distance = Literal["squared", "cosine"]
_MOST_WRITTEN = 4096
"""A text writes out at most so many numbers; of more it has only the digest."""
_IMAGES_PER_FORWARD = 8
_ARRAY = re.compile(r"(?P<path>.+\.npy)(?:\[(?P<row>\d{1,18})\])?$", re.DOTALL | re.IGNORECASE)


def match(
    layer: str,
    *,
    images: Any = None,
    vector: npt.ArrayLike | Tensor | None = None,
    distance: Distance = "squared",
    pooled: bool = False,
) -> Objective:
    """Similarity of a layer's activation to a target; its highest value is at the target.

    With the activation φ and its target φ₀, the value is minus the relative squared error,
    `−‖φ − φ₀‖² / ‖φ₀‖²`, or the cosine `φ·φ₀ / (‖φ‖ ‖φ₀‖)`. A row of a store or of an index is a
    target by `StoreLayer.match` or `VectorIndex.match`, which also check the model.

    Args:
        layer: name of the layer.
        images: one or several images whose activations are the targets, as `model.images` takes
            them; one for all images, or one per image. The model computes their activations when
            the objective is bound to it.
        vector: instead of images, the target itself: a pooled row `(C,)` or an activation
            `(C, h, w)`, or `(T, C)` or `(T, C, h, w)` with one per image. Tokens are on their grid,
            without prefix tokens.
        distance: `squared` or `cosine`.
        pooled: compare the means over positions, `(C,)`, which says nothing about places; a vector
            decides this by its shape.

    Raises:
        ObjectiveError: both or no target is given, a file cannot be read, or a vector is not of
            finite numbers or zero.
    """
    if distance not in get_args(Distance):
        raise ObjectiveError(f"distance is {distance!r}: expected 'squared' or 'cosine'")
    if (images is None) == (vector is None):
        raise ObjectiveError("match needs one target: give either images= or vector=")
    if vector is not None:
        return match_rows(layer, _numbers(vector), distance=distance)
    return match_images(Match, layer, images, distance, bool(pooled))


def match_images(
    kind: type[Match],
    layer: str,
    images: Any,
    distance: Distance = "squared",
    pooled: bool = False,
) -> Match:
    """Make an objective whose targets are images.

    Args:
        kind: the objective's class.
        layer: name of the layer.
        images: as for `match`.
        distance: as for `match`.
        pooled: as for `match`.

    Raises:
        ObjectiveError: there is no image, or a file cannot be read.
    """
    sources = _separate(images)
    if not sources:
        raise ObjectiveError(f"{kind.function} got no images: give one, or one per image")
    names = tuple(str(item) if isinstance(item, str | Path) else "" for item in sources)
    digests = tuple(map(_image_digest, sources))
    return kind(layer, digests, names, distance, pooled, False, sources)


def match_rows(
    layer: str,
    rows: npt.NDArray[np.float64],
    *,
    distance: Distance = "squared",
    names: Sequence[str] = (),
    computed_by: tuple[str, str] | None = None,
) -> Objective:
    """Make a match objective of rows `(T, C)` or activations `(T, C, h, w)`.

    Args:
        layer: name of the layer.
        rows: the targets.
        distance: as for `match`.
        names: where each row is from, for texts and labels.
        computed_by: id and `activations_sha256` of the model that computed the rows; no other
            model is accepted.

    Raises:
        ObjectiveError: a target is zero.
    """
    if not np.abs(rows).reshape(len(rows), -1).max(1, initial=0).all():
        raise ObjectiveError(
            f"a target of match at {layer!r} is zero, so no error is relative to it and it has no "
            "direction: choose another target"
        )
    digests = tuple(values_sha256(row)[:16] for row in rows)
    named = tuple(names) or ("",) * len(rows)
    pooled = rows.ndim == 2
    return Match(layer, digests, named, distance, pooled, True, tuple(rows), computed_by)


def load_match(
    layer: str, names: Sequence[str], *, distance: Distance = "squared", pooled: bool = False
) -> Objective:
    """Make a match objective of files.

    Args:
        layer: name of the layer.
        names: paths of pictures, or of `.npy` files as for `vector`; `FILE.npy[3]` is one row.
        distance: as for `match`.
        pooled: as for `match`.

    Raises:
        ObjectiveError: a file cannot be read, or there are pictures and arrays.
    """
    arrays = [found for name in names if (found := _ARRAY.match(name))]
    if not arrays:
        return match(layer, images=list(names), distance=distance, pooled=pooled)
    if len(arrays) < len(names):
        raise ObjectiveError(
            f"the targets of match at {layer!r} are pictures and arrays: give one kind"
        )
    rows = [row for found in arrays for row in _load_rows(found["path"], found["row"])]
    if len({values.shape for _, values in rows}) > 1:
        raise ObjectiveError(f"the targets of match at {layer!r} differ in shape: give one shape")
    values = np.stack([values for _, values in rows])
    return match_rows(layer, values, distance=distance, names=[name for name, _ in rows])


def _load_rows(path: str, row: str | None) -> list[tuple[str, npt.NDArray[np.float64]]]:
    """Return names and values of all targets in a file, or of one."""
    try:
        values = _numbers(read_npy(path))
    except (OSError, ValueError) as error:
        raise ObjectiveError(f"cannot read a target from {path}: {why(error)}") from error
    if row is None and len(values) == 1:
        return [(path, values[0])]
    chosen = range(len(values)) if row is None else [int(row)]
    if row is not None and int(row) >= len(values):
        raise ObjectiveError(f"{path} has targets 0 to {len(values) - 1}, there is no {row}")
    return [(f"{path}[{number}]", values[number]) for number in chosen]


def check_digests(objective: Objective, digests: Sequence[str]) -> None:
    """Refuse a match objective whose targets have other digests than a text says.

    Args:
        objective: the objective.
        digests: the digest of each target in the text; empty if the text has none.

    Raises:
        ObjectiveError: a digest is another one.
    """
    assert isinstance(objective, Match)
    for name, found, wanted in zip(objective.names, objective.digests, digests, strict=False):
        if wanted and wanted != found:
            raise ObjectiveError(
                f"{name} is not the target that the objective names: its digest is {found}, "
                f"expected {wanted}; it has changed, or is another one"
            )


@dataclass(frozen=True)
class Match(LayerObjective):
    """Similarity of a layer's activation to a target, or to one per image.

    Attributes:
        digests: the first 16 digits of the SHA-256 of each target as it was given: a file's bytes,
            or the shape and values of an image or vector.
        names: where each target is from; may be empty.
        distance: `squared` or `cosine`.
        pooled: compare means over positions.
        vectors: whether `sources` are numbers, not images.
        sources: the targets.
        computed_by: id and SHA-256 of the only model whose activations the vectors are.
    """

    function: ClassVar[str] = "match"
    """Its name in texts."""

    digests: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    distance: Distance = "squared"
    pooled: bool = False
    vectors: bool = False
    sources: tuple[Any, ...] = field(default=(), compare=False, repr=False)
    computed_by: tuple[str, str] | None = field(default=None, compare=False)
    _values: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    _images: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    _owner: object = field(default=None, init=False, repr=False, compare=False)

    def bind(self, model: ModelLike, images: Tensor | None) -> Objective:
        """Compute the targets' activations, unless they are bound to this model already."""
        layer, count = model.layers[self.layer], len(self.digests)
        if images is not None and count not in (1, len(images)):
            raise ObjectiveError(
                f"{count} targets of {self.function} at {self.layer!r} for {len(images)} image(s): "
                "give one, or one per image"
            )
        if self.computed_by is not None and self.computed_by[1] != model.activations_sha256:
            raise ObjectiveError(
                f"the target of {self.label} was computed by {self.computed_by[0]}, and {model.id} "
                "has other weights or defences: use that model"
            )
        owner = (model.id, model.activations_sha256, model.mean, model.std)
        if self._values is not None and self._owner == owner:
            values, pictures = self._values, self._images
        else:
            values, pictures = self._activations(model)
        self._check_shape(values, layer, images)
        return self._bound(layer, values, pictures, owner)

    def _bound(
        self, layer: Layer | None, values: Tensor | None, pictures: Tensor | None, owner: object
    ) -> Match:
        bound = replace(self)
        facts = {"_bound_to": layer, "_values": values, "_images": pictures, "_owner": owner}
        for name, value in facts.items():
            object.__setattr__(bound, name, value)
        return bound

    def _activations(self, model: ModelLike) -> tuple[Tensor, Tensor | None]:
        """Return the targets `(T, …)`, and their images if they are images."""
        with torch.inference_mode(False), torch.no_grad():
            if self.vectors:
                return torch.from_numpy(np.stack(self.sources)), None
            pictures = model.images(list(self.sources)).detach().clone()
            at_size = model.for_images(pictures)
            layer, parts = at_size.layers[self.layer], []
            for start in range(0, len(pictures), _IMAGES_PER_FORWARD):
                some = pictures[start : start + _IMAGES_PER_FORWARD]
                rows = image_rows(range(start, start + len(some)))
                with rows, at_size.record(self.layer) as recording:
                    at_size(some)
                parts.append(self._compared(layer, recording[self.layer]).clone())
            values = torch.cat(parts)
        if not bool((torch.isfinite(values).all() & values.flatten(1).abs().amax(1).gt(0)).all()):
            raise ObjectiveError(
                f"the activation at {self.layer!r} of a target of {self.label} is zero or not "
                "finite: choose another layer or image"
            )
        return values, pictures

    def _compared(self, layer: Layer, activation: Tensor) -> Tensor:
        """The part of an activation that is compared: `(B, C)` or `(B, C, h, w)`."""
        part = layer.pooled(activation) if self.pooled else layer.spatial(activation)
        return at_least_float32(part)

    def _check_shape(self, values: Tensor, layer: Layer, images: Tensor | None) -> None:
        """Refuse targets that do not fit the layer, as far as its catalogue says."""
        wanted = (layer.channels,) if self.pooled else (layer.channels, *(layer.grid or (1, 1)))
        shown = tuple(values.shape[1:])
        own_size = images is None or has_catalogued_grid(layer, images)
        if shown[0] != wanted[0] or (own_size and shown != wanted):
            raise self._wrong_shape(shown, wanted)

    def _wrong_shape(self, target: Sequence[int], activation: Sequence[int]) -> ObjectiveError:
        return ObjectiveError(
            f"the target of {self.label} has shape {tuple(target)}, and the activation of "
            f"{self.layer!r} has {tuple(activation)}: give a target of this layer and image size, "
            "or compare pooled rows"
        )

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """Minus the relative squared error, or the cosine."""
        activation = self._compared(self._bound_layer(), recording[self.layer])
        assert self._values is not None, "binding sets it with the layer"
        if activation.shape[1:] != self._values.shape[1:]:
            raise self._wrong_shape(self._values.shape[1:], activation.shape[1:])
        target = self._values.to(activation).flatten(1)
        activation = activation.flatten(1)
        if self.distance == "cosine":
            return functional.cosine_similarity(activation, target, dim=1)
        return -(activation - target).square().sum(1) / target.square().sum(1)

    @property
    def num_targets(self) -> int | None:
        """The number of targets, if there are several."""
        return len(self.digests) if len(self.digests) > 1 else None

    @property
    def reference_images(self) -> Tensor | None:
        """The images whose activations are the targets."""
        return self._images

    def take(self, targets: Sequence[int]) -> Objective:
        """The targets of those images."""
        if self.num_targets is None:
            return self
        rows = list(targets)
        digests, names, sources = (
            tuple(values[row] for row in rows)
            for values in (self.digests, self.names, self.sources)
        )
        part = replace(self, digests=digests, names=names, sources=sources)
        values, pictures = (
            None if known is None else known[rows] for known in (self._values, self._images)
        )
        return part._bound(self._bound_to, values, pictures, self._owner)

    @property
    def label(self) -> str:
        """Layer and target, without the digest if the target has a name."""
        names = [
            os.path.basename(name) or f"#{digest[:8]}"  # noqa: PTH119 (any text)
            for name, digest in zip(self.names, self.digests, strict=True)
        ]
        return self._text("|".join(names))

    def __str__(self) -> str:
        if self.vectors and not any(self.names) and self._size <= _MOST_WRITTEN:
            rows = [source.tolist() for source in self.sources]
            return self._text(json.dumps(rows if len(rows) > 1 else rows[0]))
        pairs = zip(self.names, self.digests, strict=True)
        return self._text("|".join(f"{file_text(name)}#{digest}" for name, digest in pairs))

    @property
    def _size(self) -> int:
        return sum(source.size for source in self.sources)

    def _text(self, targets: str) -> str:
        options = ", cosine" * (self.distance == "cosine")
        options += ", pooled" * (self.pooled and not self.vectors)
        return f"{self.function}({layer_text(self.layer)}@{targets}{options})"


def _separate(images: Any) -> tuple[Any, ...]:
    """Return the images of a source as `HookedModel.images` takes it, one by one."""
    if isinstance(images, list | tuple) or (isinstance(images, Tensor) and images.ndim == 4):
        return tuple(images)
    return (images,)


def _numbers(vector: npt.ArrayLike | Tensor) -> npt.NDArray[np.float64]:
    """Return targets as `(T, C)` or `(T, C, h, w)`.

    Raises:
        ObjectiveError: they have another shape, or are not finite numbers.
    """
    if isinstance(vector, Tensor):
        vector = vector.detach().cpu().double().numpy()
    try:
        values = np.asarray(vector, np.float64)
    except (TypeError, ValueError) as error:
        raise ObjectiveError(f"the target of match is not an array of numbers: {error}") from None
    if not 1 <= values.ndim <= 4 or not values.size:
        raise ObjectiveError(
            f"the target of match has shape {values.shape}: expected (C,) or (C, h, w), or several"
        )
    if not np.isfinite(values).all():
        raise ObjectiveError("the target of match has values that are NaN or infinite")
    return values[None] if values.ndim in (1, 3) else values


def _image_digest(source: Any) -> str:
    try:
        return image_sha256(source)[:16]
    except (OSError, ValueError) as error:
        raise ObjectiveError(f"cannot read the image {source}: {why(error)}") from error
