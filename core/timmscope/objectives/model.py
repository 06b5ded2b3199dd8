"""`ModelLike` is what an objective needs of a model; objectives depend on no model class."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from timmscope_registry.hooks import Layer, Recording


class ClassLookup(Protocol):
    """Finds a class by its name."""

    def find(self, name: str) -> int:
        """Index of the class; raises `ObjectiveError` if none or several have the name."""


class ModelLike(Protocol):
    """A model that objectives can be bound to."""

    @property
    def id(self) -> str:
        """Name of the model in error messages."""

    @property
    def activations_sha256(self) -> str | None:
        """SHA-256 of all parameters, buffers and defences; None for a function, which has none."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean per channel that the model subtracts."""

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation per channel by which the model divides."""

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 if the model is no classifier."""

    @property
    def classes(self) -> ClassLookup | None:
        """The classes by name, None if they have no names."""

    @property
    def layers(self) -> Mapping[str, Layer]:
        """The layers by name, in execution order."""

    def images(self, source: Any) -> Tensor:
        """Prepare images for the model, `(B, C, H, W)` in [0, 1]."""

    def for_images(self, images: Tensor) -> ModelLike:
        """Return the model with layers as they are for images of this size."""

    def record(self, *points: str) -> AbstractContextManager[Recording]:
        """Record the activations of layers during forwards inside the context."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Compute logits `(B, num_classes)` of images `(B, C, H, W)` in [0, 1]."""
