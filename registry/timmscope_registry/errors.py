"""Every error that timmscope raises on purpose, in one tree.

::

    TimmscopeError
    ├── ModelError            a model cannot be found, loaded or used in the requested way
    ├── UnsupportedModel      the architecture lacks what the call needs
    ├── LayerNotFound         the model has no hook point of that name
    ├── ObjectiveError        an objective cannot be parsed or does not fit the model
    ├── ImageError            an image or a set of images cannot be read or has wrong values
    ├── ParameterError        a parameter of a technique or command is wrong
    ├── TechniqueError        a technique ran, but its result cannot be trusted
    ├── StoreError            a store cannot be created, opened or read
    │   ├── StoreCorrupted    a shard is missing, truncated or altered
    │   └── StoreMismatch     a store was mined with other settings than those requested
    ├── VectorIndexError      an index cannot be built, loaded or searched
    └── PluginError           a plugin cannot be found, loaded or identified, or fails

A message is one line that says what is wrong and where, what was expected and what to do next.
Attributes repeat the facts, so that a program need not parse the message.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class TimmscopeError(Exception):
    """Base of all errors raised on purpose; the command line exits with `exit_status`."""

    exit_status = 2


class ModelError(TimmscopeError):
    """A model cannot be found, loaded or used in the requested way."""


class UnsupportedModel(TimmscopeError):
    """The architecture lacks what the call needs; the message names what was found instead."""


class LayerNotFound(TimmscopeError):
    """The model has no hook point of that name.

    Attributes:
        name: the requested name.
        nearest: similar names that exist, best first.
    """

    def __init__(self, message: str, *, name: str = "", nearest: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.name = name
        self.nearest = tuple(nearest)


class ObjectiveError(TimmscopeError):
    """An objective cannot be parsed, or does not fit the model."""


class ImageError(TimmscopeError):
    """An image or a set of images cannot be read, or has values outside the expected range.

    Attributes:
        path: the file; None if the image does not come from one.
    """

    def __init__(self, message: str, *, path: str | Path | None = None) -> None:
        super().__init__(message)
        self.path = path


class ParameterError(TimmscopeError):
    """A parameter of a technique or command is unknown, missing or out of range.

    Attributes:
        parameter: the parameter's name; None if the error concerns several.
    """

    def __init__(self, message: str, *, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class TechniqueError(TimmscopeError):
    """A technique ran, but its result cannot be trusted: zero gradients, NaN, a wrong shape."""


class StoreError(TimmscopeError):
    """A store cannot be created, opened or read."""


class StoreCorrupted(StoreError):
    """A shard is missing, truncated or altered.

    Attributes:
        shard: path of the damaged file, relative to the store.
    """

    def __init__(self, message: str, *, shard: str | None = None) -> None:
        super().__init__(message)
        self.shard = shard


class StoreMismatch(StoreError):
    """A store was mined with other settings (model, images, layers …) than those requested.

    Attributes:
        differences: one line per field that differs.
    """

    def __init__(self, message: str, *, differences: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.differences = tuple(differences)


class VectorIndexError(TimmscopeError):
    """An index cannot be built, loaded or searched."""


class PluginError(TimmscopeError):
    """A plugin or its contribution cannot be found, loaded or identified, or it fails."""
