"""`Result` is the base class of what techniques return; results are saved, drawn and loaded again.

`save(dir)` writes PNG pictures, documents (tables, pages), `arrays.h5` with every array, and
`result.json` with the other fields and everything needed to run the technique again;
`load_result(dir)` returns an equal object. Torch is imported only for results that hold tensors.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import h5py
import numpy as np

from timmscope.progress import track
from timmscope_registry import PluginError, TimmscopeError, get_registry
from timmscope_registry.contributions import missing_plugin
from timmscope_registry.html_table import html_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

R = TypeVar("R", bound="Result")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Everything that is needed to compute a result again.

    Attributes:
        technique: id of the technique, `distribution:name`.
        family: its family.
        parameters: the technique's fields as JSON values.
        model: id of the model.
        weights_sha256: hash of the model's parameters and buffers.
        seed: seed of random numbers.
        call: further arguments, such as the objective's text.
        versions: versions of the packages that affect the numbers.
    """

    technique: str
    family: str
    parameters: dict[str, Any]
    model: str | None
    weights_sha256: str | None
    seed: int
    call: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def now(cls, **facts: Any) -> Provenance:
        """Create a provenance with the package versions of this environment."""
        return cls(versions=environment_versions(), **facts)


def environment_versions() -> dict[str, str]:
    """Return the versions of timmscope and the packages that affect its numbers."""
    return {name: _version(name) for name in ("timmscope", "torch", "timm", "numpy")}


@cache
def _version(name: str) -> str:
    try:
        return version(name)  # parses a file, which takes as long as a small model's forward pass
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True, kw_only=True)
class Result(ABC):
    """Base class of all results: frozen dataclasses of tensors, NumPy arrays and plain values.

    Declare subclasses with `@dataclass(frozen=True, kw_only=True)`. Fields of arrays may be None.
    A loaded array is a NumPy array if the field's annotation says so, otherwise a tensor.
    """

    provenance: Provenance

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__repr__ = Result.__repr__  # type: ignore[method-assign]  # dataclass keeps it

    def __repr__(self) -> str:
        """Show shapes instead of values."""
        shown = ", ".join(
            f"{name}={'×'.join(str(size) for size in value.shape) or value.item()}"
            for name, value in self._arrays().items()
        )
        return f"{type(self).__name__}({self.provenance.technique}, {shown})"

    @abstractmethod
    def figure(self) -> Figure:
        """Draw the result as one matplotlib figure."""

    @abstractmethod
    def summary(self) -> list[dict[str, Any]]:
        """Return a few plain facts per image, unit …, one dictionary each, for tables and JSON."""

    def pictures(self) -> dict[str, Any]:
        """Return pictures that `save` writes besides the figure, by name.

        Each is an image tensor `(3, H, W)` in [0, 1], a matplotlib figure, or a function without
        arguments that makes one of these, so that only one of many pages is in memory.
        """
        return {}

    def documents(self) -> dict[str, str]:
        """Return text files that `save` writes besides the pictures, such as CSV tables and pages.

        Keys are file names; values are the contents.
        """
        return {}

    def save(self, directory: str | Path) -> Path:
        """Write figure, pictures, documents, `arrays.h5` and `result.json`; return the directory.

        Raises:
            TimmscopeError: the directory cannot be written.
        """
        from timmscope.drawing import write_png

        directory = Path(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            written = ["figure.png"]
            self.figure().savefig(directory / "figure.png", dpi=150)
            for name, picture in track(self.pictures().items(), "writing pictures"):
                drawn = picture() if callable(picture) else picture
                if hasattr(drawn, "savefig"):
                    drawn.savefig(directory / f"{name}.png", dpi=150)
                else:
                    write_png(drawn, directory / f"{name}.png")
                written.append(f"{name}.png")
            for name, content in self.documents().items():
                (directory / name).write_text(content, encoding="utf-8", newline="")
                written.append(name)
            self._write_arrays(directory / "arrays.h5")
            text = json.dumps(self._record(written), indent=2, ensure_ascii=False)
            # File names that are not UTF-8 hold lone surrogates, which become JSON escapes.
            (directory / "result.json").write_text(
                text + "\n", encoding="utf-8", errors="backslashreplace"
            )
        except (FileExistsError, NotADirectoryError) as error:
            raise TimmscopeError(
                f"{directory}: the result's folder cannot be created, because a file is in its "
                "place; choose another folder"
            ) from error
        except OSError as error:
            raise TimmscopeError(f"cannot write the result to {directory}: {error}") from error
        return directory

    def _repr_html_(self) -> str:
        buffer = io.BytesIO()
        self.figure().savefig(buffer, format="png", dpi=110)
        picture = base64.b64encode(buffer.getvalue()).decode()
        rows = self.summary()
        table = html_table(f"{type(self).__name__} of {self.provenance.technique}", rows, len(rows))
        return f'<img style="max-width:100%" src="data:image/png;base64,{picture}">{table}'

    def _arrays(self) -> dict[str, Tensor | np.ndarray]:
        torch = sys.modules.get("torch")  # if torch is not imported, there are no tensors
        kinds = np.ndarray if torch is None else (np.ndarray, torch.Tensor)
        return {
            item.name: value
            for item in dataclasses.fields(self)
            if isinstance(value := getattr(self, item.name), kinds)
        }

    def _write_arrays(self, path: Path) -> None:
        with h5py.File(path, "w") as file:
            for name, array in self._arrays().items():
                if not isinstance(array, np.ndarray):
                    array = array.detach().cpu()
                    array = (array.float() if "bfloat16" in str(array.dtype) else array).numpy()
                file.create_dataset(name, data=array, track_times=False)

    def _record(self, files: list[str]) -> dict[str, Any]:
        arrays = self._arrays()
        plain = {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if item.name not in arrays and item.name != "provenance"
        }
        return {
            "type": type(self).__name__,
            "provenance": dataclasses.asdict(self.provenance),
            "fields": to_json(plain),
            "arrays": {name: list(value.shape) for name, value in arrays.items()},
            "summary": to_json(self.summary()),
            "files": files,
        }


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
        TimmscopeError: the directory holds no result, or a result of an unknown class.
        PluginError: the plugin that made it is not installed, or does not load.
    """
    directory = Path(directory)
    try:
        record = json.loads((directory / "result.json").read_text(encoding="utf-8"))
        technique = record["provenance"]["technique"]
        found = _result_class(directory, str(record["type"]), technique, kind)
        values = dict(record["fields"])
        types = {item.name: str(item.type).lower() for item in dataclasses.fields(found)}
        with h5py.File(directory / "arrays.h5") as file:
            for name in record["arrays"]:
                array = np.asarray(file[name][()])
                values[name] = array if "ndarray" in types.get(name, "") else _tensor(array)
        return found(provenance=Provenance(**record["provenance"]), **values)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise TimmscopeError(f"no result can be read from {directory}: {reason}") from error


def _tensor(array: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(array)


def _result_class(
    directory: Path, name: str, technique: str, given: type[Result] | None
) -> type[Result]:
    """Return the class that a file names: the given one, a public one, or a plugin's."""
    if given is not None:
        if given.__name__ != name:
            raise TimmscopeError(f"{directory} holds {name!r}, not {given.__name__!r}")
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


def to_json(value: Any) -> Any:
    """Convert to JSON values: arrays become lists, paths text, NaN and infinity None."""
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):
        return to_json(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return str(value)
