"""Reads the images of a training and their labels, in an order that follows from the seed.

Images that fit into `MEMORY_BYTES` are read once; others are read again in every epoch, by worker
processes. The order of an epoch depends on the seed and the epoch only, so that a training can
resume in its middle.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from natsort import natsorted
from PIL import Image
from torch import Tensor

from timmscope.images import ImageSource
from timmscope.mining.loader import Batches, load_batches
from timmscope.models import HookedModel, Preprocessing
from timmscope.progress import track
from timmscope_registry import ImageError, ObjectiveError, ParameterError

MEMORY_BYTES = 1 << 30
"""Images that take no more than this are kept in memory."""
_READ_AT_ONCE = 64
_MOST_WORKERS = 8


def seed_of(*parts: object) -> int:
    """Return a seed of 63 bits for a purpose, such as ``seed_of(seed, "order", epoch)``."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def permutation(count: int, *parts: object) -> Tensor:
    """Return the numbers below `count` in an order that depends only on the parts of a seed."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(*parts)))


class InOrder(ImageSource):
    """Some images of another source, in a given order."""

    def __init__(self, source: ImageSource, ids: Sequence[int]) -> None:
        self._source = source
        self._ids = list(ids)

    def __len__(self) -> int:
        return len(self._ids)

    def load(self, index: int) -> Image.Image:
        """Return the image of that place in the order."""
        return self._source.load(self._ids[index])

    def pixels(self, index: int) -> np.ndarray | None:
        """Return the pixels of the image of that place in the order."""
        return self._source.pixels(self._ids[index])

    @property
    def paths(self) -> Sequence[str]:
        """The names in the order; an image that comes twice has its name twice."""
        return [self._source.paths[index] for index in self._ids]

    def fingerprint(self) -> str:
        """Digest of the other source and of the order."""
        order = hashlib.sha256(",".join(map(str, self._ids)).encode())
        return f"{self._source.fingerprint()}-{order.hexdigest()}"

    def unreachable(self) -> str:
        """As the other source."""
        return self._source.unreachable()


class TrainingData:
    """Images `(N, C, H, W)` in [0, 1] as a model takes them, with their classes.

    Args:
        source: where the images are read.
        ids: the images to use.
        classes: class of each image of `ids`; -1 without labels.
        preprocessing: resize and crop.
        workers: processes that read images which do not fit into memory; by default one per core,
            at most 8.
    """

    def __init__(
        self,
        source: ImageSource,
        ids: Tensor,
        classes: Tensor,
        preprocessing: Preprocessing,
        workers: int | None,
    ) -> None:
        self._source, self._ids, self._classes = source, ids, classes
        self._preprocessing = preprocessing
        self._workers = workers
        self._kept: Tensor | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def batches(self, order: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images `(B, C, H, W)` and classes `(B,)` in batches of `size`; the last is shorter.

        Args:
            order: places among the images.
            size: images per batch.

        Raises:
            ImageError: an image cannot be read.
        """
        classes = self._classes[order]
        for start, images in self._images(order, size):
            yield images, classes[start : start + len(images)]

    def _images(self, order: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
        values = len(self) * torch.Size(self._preprocessing.input_size).numel()
        if values * 4 > MEMORY_BYTES:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
            workers = min(cores, _MOST_WORKERS) if self._workers is None else self._workers
            yield from self._read(self._ids[order], size, workers)
            return
        if self._kept is None:
            steps = -(-len(self) // _READ_AT_ONCE)
            read = self._read(self._ids, _READ_AT_ONCE, 0)
            self._kept = torch.cat([part for _, part in track(read, "reading images", steps)])
        for start in range(0, len(order), size):
            yield start, self._kept[order[start : start + size]]

    def _read(self, ids: Tensor, size: int, workers: int) -> Iterator[tuple[int, Tensor]]:
        source = InOrder(self._source, ids.tolist())
        ends = [*range(0, len(ids), size), len(ids)]
        ranges = list(itertools.pairwise(ends))
        for loaded in load_batches(Batches(source, self._preprocessing, ranges), workers=workers):
            for row, reason in enumerate(loaded.reasons):
                if reason:
                    name = self._source.paths[int(ids[loaded.start + row])]
                    raise ImageError(
                        f"{name}: {reason}; a training needs every image: repair it, or leave it "
                        "out and train into another folder",
                        path=name,
                    )
            yield loaded.start, loaded.images


def split(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return which of some images are trained on, and which are held out; both at least one.

    Raises:
        ParameterError: there are fewer than two images.
    """
    if count < 2:
        raise ParameterError(
            f"{count} image to train on and to hold out: give at least 2, or held-out images",
            parameter="images",
        )
    held = min(max(1, round(count * share)), count - 1)
    order = permutation(count, seed, "split")
    return order[held:].sort().values, order[:held].sort().values


def class_names(model: HookedModel, labels: Sequence[str]) -> list[str] | None:
    """Return the names of the classes that labels mean.

    They are the model's own. If it has none, and the labels are no numbers of classes, they are the
    labels in natural order.

    Raises:
        ParameterError: there are more or fewer labels than classes.
    """
    if model.classes is not None:
        return list(model.classes)
    if all(_is_class(label, model.num_classes) for label in labels):
        return None
    names: list[str] = natsorted(set(labels))
    if len(names) != model.num_classes:
        raise ParameterError(
            f"the images have {len(names)} labels ({', '.join(names[:3])} …), and {model.id} has "
            f"{model.num_classes} classes without names: give it as many, or class_names",
            parameter="images",
        )
    return names


def classes_of(model: HookedModel, names: list[str] | None, labels: Sequence[str]) -> Tensor:
    """Return the class of each label `(N,)` int64.

    Raises:
        ParameterError: a label is no class.
    """
    index = {label: _class(model, names, label) for label in dict.fromkeys(labels)}
    return torch.tensor([index[label] for label in labels])


def classes_if_any(model: HookedModel, source: ImageSource) -> Tensor:
    """Return the class of each image `(N,)` int64; -1 for all unless every label is a class."""
    try:
        return classes_of(model, None, labels_of(source))
    except ParameterError:
        return torch.full((len(source),), -1)


def labels_of(source: ImageSource) -> list[str]:
    """Return the label of each image.

    Raises:
        ParameterError: an image has no label.
    """
    labels: Sequence[Any] = source.labels if source.labels is not None else [None] * len(source)
    missing = [place for place, label in enumerate(labels) if label is None]
    if missing:
        first = source.paths[missing[0]]
        many = "no image has" if len(missing) == len(source) else f"{len(missing)} images have no"
        raise ParameterError(
            f"{source.location or 'the images'}: {many} {'a ' if 'has' in many else ''}label "
            f"(first {first}), and one is needed for each: put them into a folder per class, or "
            "into an array with labels",
            parameter="images",
        )
    return [str(label) for label in labels]


def _class(model: HookedModel, names: list[str] | None, label: str) -> int:
    if names is not None and label in names:
        return names.index(label)
    if model.classes is not None:
        try:
            return model.classes.find(label)
        except ObjectiveError as error:
            if not _is_class(label, model.num_classes):
                raise ParameterError(
                    f"the label {label!r} is no class of {model.id}: {error}", parameter="images"
                ) from None
    if _is_class(label, model.num_classes):
        return int(label)
    raise ParameterError(
        f"the label {label!r} is no class of {model.id}: expected "
        + (", ".join((names or [])[:4]) + " …" if names else f"0 to {model.num_classes - 1}"),
        parameter="images",
    )


def _is_class(label: str, count: int) -> bool:
    return label.isascii() and label.isdigit() and int(label) < count
