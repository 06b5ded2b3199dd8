"""Describes the arguments of a technique's call, so that a command line or a form can ask for them.

A family's base class annotates the arguments of its `__call__` with the kinds below. An argument of
a plain type (`int`, `str | None`, `Sequence[float]` …) needs no kind; an argument of any other type
can be given in Python only.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy.typing as npt
from torch import Tensor

from timmscope.models import HookedModel
from timmscope.objectives import Objective as AnyObjective

if TYPE_CHECKING:
    from timmscope.techniques.base import Technique


@dataclass(frozen=True, eq=False)
class Kind:
    """The meaning of an argument whose type does not tell it."""

    name: str


Model = Annotated[HookedModel, Kind("model")]
Images = Annotated[Any, Kind("images")]
"""One or several images, as `HookedModel.images` takes them."""
Image = Annotated[Any, Kind("image")]
OtherImages = Annotated[Any, Kind("other images")]
"""Images with a second role, besides the images that the technique works on."""
Objective = Annotated[AnyObjective | str | int, Kind("objective")]
ImageSet = Annotated[Any, Kind("image set")]
"""A folder, list, array or tar, as `open_images` takes them, or a tensor `(N, C, H, W)`."""
HeldOut = Annotated[Any, Kind("held out")]
"""A share of the images, or other images, as `ImageSet`."""
ObjectiveToReach = Annotated[AnyObjective | str | int | None, Kind("objective to reach")]
"""An objective that should reach a value; there are other goals without it."""
Classes = Annotated[int | str | Sequence[int | str] | Tensor | None, Kind("classes")]
"""One class for all images, or one per image."""
Store = Annotated[Any, Kind("store")]
"""A store or its folder, one of its layers, or an array of rows."""
Stores = Annotated[Any, Kind("stores")]
Queries = Annotated[Any, Kind("queries")]
"""Images to compare with those of a store."""
OptionalImages = Annotated[Any, Kind("optional images")]
Layers = Annotated[str | Sequence[str] | None, Kind("layers")]
"""Layers of a store."""
Where = Annotated[str | npt.ArrayLike | None, Kind("where")]
Location = Annotated[Any, Kind("location")]
"""Where the images of a store are now."""
OutputFolder = Annotated[str | os.PathLike[str], Kind("output")]
"""A folder that a call writes to while it runs."""
Locations = Annotated[Any, Kind("locations")]


class Argument(NamedTuple):
    """One argument of a technique's call.

    Attributes:
        parameter: name, type and default; the default is None if the type allows None.
        kind: name of its kind; empty for a plain type.
        about: first sentence of its description under `Args`; the rest concerns Python only.
    """

    parameter: inspect.Parameter
    kind: str
    about: str


def call_arguments(technique: type[Technique]) -> Iterator[Argument]:
    """Yield the arguments of a technique's call that can be given as text, in signature order."""
    call = technique.__call__
    hints = get_type_hints(call, include_extras=True)
    about = _first_sentences(inspect.getdoc(call) or "")
    for name, parameter in list(inspect.signature(call).parameters.items())[1:]:
        hint = hints[name]
        kind = _kind(hint)
        if kind is None and not _is_plain(hint):
            continue
        if parameter.default is parameter.empty and NoneType in get_args(hint):
            parameter = parameter.replace(default=None)
        taken = technique.takes_argument(parameter)
        if taken is None:
            continue
        kind_name = kind.name if kind else ""
        yield Argument(taken.replace(annotation=hint), kind_name, about.get(name, ""))


def _kind(hint: Any) -> Kind | None:
    """Return the kind in an annotation, also for `Image | None`."""
    notes = (n for part in (hint, *get_args(hint)) for n in getattr(part, "__metadata__", ()))
    return next((note for note in notes if isinstance(note, Kind)), None)


def _is_plain(hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType, Sequence, tuple):
        return all(part is ... or _is_plain(part) for part in get_args(hint))
    return get_origin(hint) is Literal or hint in (int, float, bool, str, Path, NoneType)


def _first_sentences(docstring: str) -> dict[str, str]:
    """Return the first sentence of each entry under `Args`."""
    section = docstring.partition("\nArgs:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section, re.MULTILINE)
    texts = ((name, " ".join(text.replace("`", "").split())) for name, text in entries)
    return {
        name: f"{text[:1].upper()}{re.split(r'[.](?: (?=[A-Z])|$)', text[1:])[0]}."
        for name, text in texts
    }
