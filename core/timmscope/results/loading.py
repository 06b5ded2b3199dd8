"""Loads results that `Result.save` wrote, also those of strangers.

Digests say whether `result.json` and `arrays.h5` are those that were saved together; sizes and
types are checked before values are used; and a file never names code to import.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

import h5py
import numpy as np

import timmscope.checked_json as checked_json
from timmscope.safe_files import hdf5_member, open_hdf5, require_stored
from timmscope_registry import PluginError, TimmscopeError, get_registry
from timmscope_registry.contributions import missing_plugin
from timmscope_registry.out_of_memory import is_out_of_memory

from .result import ARRAYS, RECORD, Provenance, Result
from .saving import open_newest

if TYPE_CHECKING:
    from torch import Tensor

R = TypeVar("R", bound=Result)

_MOST_BYTES = 1 << 30
"""Size of a `result.json` that is read."""


@overload
def load_result(directory: str | Path) -> Result: ...


@overload
def load_result(directory: str | Path, kind: type[R]) -> R: ...


def load_result(directory: str | Path, kind: type[Result] | None = None) -> Result:
    """Load a result that `save` wrote.

    The file holds the name of a public class of timmscope, or of a class of the plugin whose
    technique made the result; it never names code to import.

    Args:
        directory: folder of the result.
        kind: class of the result, which gives an editor the types of its fields; needed for the
            result of a technique that no plugin registers.

    Raises:
        TimmscopeError: the directory holds no result, one that was damaged or edited, or a result
            of an unknown class.
        PluginError: the plugin that made it is not installed, or does not load.
    """
    directory = Path(directory)
    text = b""
    while True:
        try:
            text = _record_text(directory)
            return _result(directory, checked_json.load(text), kind).placed_in(directory)
        except (OSError, LookupError, TypeError, ValueError, AttributeError, MemoryError) as error:
            with suppress(OSError, ValueError):
                if text and text != _record_text(directory):  # another process has just saved
                    continue
            if is_out_of_memory(error):
                raise TimmscopeError(
                    f"{directory}: there is not enough memory to read the result; free some, then "
                    "try again"
                ) from error
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise TimmscopeError(
                f"no result can be read from {directory}: {reason}; {_advice(error)}"
            ) from error


def _advice(error: Exception) -> str:
    """Return what to do about a result that cannot be read."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"name a folder with {RECORD} and {ARRAYS}, as save or -o writes it"
    if isinstance(error, OSError):
        return "check the disk, the permissions and the limit of open files, then try again"
    return f"restore {RECORD} and {ARRAYS} from a copy, or make the result again"


def _record_text(directory: Path) -> bytes:
    with open_newest(directory, RECORD, _MOST_BYTES) as file:
        return file.read()


def _result(directory: Path, record: dict[str, Any], kind: type[Result] | None) -> Result:
    provenance = dict(record["provenance"])
    _require_types(Provenance, provenance)
    found = _result_class(directory, str(record["type"]), provenance["technique"], kind)
    values = {**record["fields"], **_arrays(directory, record, found)}
    _require_types(found, values)
    return found(provenance=Provenance(**provenance), **values)


def _arrays(
    directory: Path, record: dict[str, Any], kind: type[Result]
) -> dict[str, np.ndarray | Tensor]:
    """Read the arrays whose digest the record holds."""
    types = {item.name: str(item.type).lower() for item in dataclasses.fields(kind)}
    shapes, written = dict(record["arrays"]), record["arrays_file"]
    arrays: dict[str, np.ndarray | Tensor] = {}
    with open_newest(directory, ARRAYS, int(written["size"])) as raw:
        if hashlib.file_digest(raw, "sha256").hexdigest() != written["sha256"]:  # type: ignore[arg-type]
            raise ValueError(f"{ARRAYS} differs from its digest, so it was damaged or edited")
        with open_hdf5(raw) as file:
            for name, shape in shapes.items():
                dataset = hdf5_member(file, name)
                if not isinstance(dataset, h5py.Dataset) or list(dataset.shape or ()) != shape:
                    raise ValueError(f"{name} in {ARRAYS} is no array of shape {shape}")
                if dataset.chunks is not None:  # compressed, a few bytes can take any memory
                    raise ValueError(f"{name} in {ARRAYS} is not stored in one piece")
                require_stored(dataset)
                array = np.asarray(dataset[()])
                arrays[name] = array if "ndarray" in types.get(name, "") else _tensor(array)
    return arrays


def _tensor(array: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(array)


def _require_types(kind: type, values: dict[str, Any]) -> None:
    """Compare values with the annotations of a dataclass, so that no method meets odd types."""
    hints: dict[str, Any] = {}
    with suppress(NameError, AttributeError):  # names that only type checkers import
        hints = get_type_hints(kind, localns={"Tensor": np.ndarray})
    for name, value in values.items():
        hint = hints.get(name, Any)
        if not _fits(value, hint):
            expected = hint.__name__ if type(hint) is type else str(hint).replace("typing.", "")
            raise TypeError(f"{name} is of type {type(value).__name__}, expected {expected}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of a file can be a field's; only plain types and arrays are compared."""
    origin, inside = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inside)
    if origin is list:
        each = inside[0] if inside else Any
        return isinstance(value, list) and all(_fits(item, each) for item in value)
    if origin is dict:
        each = inside[1] if inside else Any
        return isinstance(value, dict) and all(_fits(item, each) for item in value.values())
    if origin is float:  # NaN is saved as None
        return value is None or type(value) in (int, float)
    if origin in (int, str, bool, NoneType):
        return type(value) is origin
    if origin is np.ndarray:
        return hasattr(value, "shape")
    return True


def _result_class(
    directory: Path, name: str, technique: str, given: type[Result] | None
) -> type[Result]:
    """Return the class that a file names: the given one, a public one, or a plugin's."""
    if given is not None:
        if given.__name__ != name:
            raise TimmscopeError(
                f"{directory} holds {name!r}, not {given.__name__!r}: pass its class, or none"
            )
        return given
    public = sys.modules["timmscope"]
    own = getattr(public, name) if name in public.__all__ else None
    if isinstance(own, type) and issubclass(own, Result):
        return own
    entries = {entry.id: entry for entry in get_registry().techniques()}
    if technique not in entries and ":" in technique:
        raise PluginError(f"{directory}: {missing_plugin('technique', technique)}")
    if technique in entries:
        module = entries[technique].load().__module__
        home = module.partition(".")[0]
        same = [
            each
            for each in _subclasses(Result)  # type: ignore[type-abstract]
            if each.__name__ == name
            and (each.__module__.partition(".")[0] == home or _is_in(module, each))
        ]
        if len(same) == 1:
            return same[0]
        raise TimmscopeError(
            f"{directory} holds {name!r}, which the plugin of {technique} lacks: install the "
            "version that saved it, or pass its class as kind=…"
        )
    raise TimmscopeError(
        f"{directory} holds {name!r} of {technique!r}, which no plugin registers: pass its class, "
        "as in load_result(directory, MyResult)"
    )


def _subclasses(base: type[Result]) -> Iterator[type[Result]]:
    for each in base.__subclasses__():
        yield each
        yield from _subclasses(each)


def _is_in(module: str, kind: type) -> bool:
    """Whether a loaded module contains the class under its name."""
    return vars(sys.modules[module]).get(kind.__name__) is kind
