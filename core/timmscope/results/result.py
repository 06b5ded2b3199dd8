"""`Result` is the base class of what techniques return; results are drawn and saved.

`save(dir)` writes PNG pictures, an animation of a result with frames, documents (tables, pages),
`arrays.h5` with every array, and `result.json` with the other fields and everything needed to run
the technique again; `load_result(dir)` returns an equal object. Torch is imported only for results
that hold tensors.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

import timmscope.checked_json as checked_json
from timmscope.progress import track
from timmscope.safe_files import open_hdf5
from timmscope_registry import ParameterError, TimmscopeError
from timmscope_registry.html_table import html_table
from timmscope_registry.versions import package_version

from .note_curves import is_point, note_curves_figure
from .saving import replaced_together

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

ARRAYS = "arrays.h5"
RECORD = "result.json"
ANIMATION = "animation.webp"
_DIGITS = 16
"""Digits of a SHA-256 that are shown."""


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
        named: kind, id and SHA-256 of what parameters name, such as a further model, by parameter.
    """

    technique: str
    family: str
    parameters: dict[str, Any]
    model: str | None
    weights_sha256: str | None
    seed: int
    call: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    named: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def now(cls, **facts: Any) -> Provenance:
        """Create a provenance with the package versions of this environment."""
        return cls(versions=environment_versions(), **facts)


def environment_versions() -> dict[str, str]:
    """Return the versions of timmscope and the packages that affect its numbers."""
    names = ("timmscope", "torch", "timm", "numpy")
    return {name: package_version(name) or "unknown" for name in names}


@dataclass(frozen=True, kw_only=True)
class Result(ABC):
    """Base class of all results: frozen dataclasses of tensors, NumPy arrays and plain values.

    Declare subclasses with `@dataclass(frozen=True, kw_only=True)`. Fields of arrays may be None.
    A loaded array is a NumPy array if the field's annotation says so, otherwise a tensor.

    Attributes:
        provenance: everything that is needed to compute the result again.
        notes: what the technique noted with `self.note`, by name: a list with one value per image,
            None for images without one, or one value for all images.
        further_passes: numbers of images that passed through each further model, `forwards` and
            `backwards`, by the parameter that names it.
    """

    provenance: Provenance
    notes: dict[str, Any] = field(default_factory=dict)
    further_passes: dict[str, dict[str, int]] = field(default_factory=dict)

    sheet_pictures: ClassVar[str] = ""
    """How the names of the pictures begin that stand for the result in a sheet of several results,
    as in `image-`; empty for its figure."""

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

    def named_lines(self) -> list[str]:
        """Return a line for each thing that a parameter names: id, SHA-256, passes of a model."""
        lines = []
        for parameter, each in self.provenance.named.items():
            facts = [f"{each['kind']} {each['id']}"]
            if each.get("sha256"):
                facts.append(f"SHA-256 {each['sha256'][:_DIGITS]}…")
            passes = self.further_passes.get(parameter, {})
            facts += [f"{count} {what}" for what, count in passes.items()]
            lines.append(f"{parameter}: {', '.join(facts)}")
        return lines

    @abstractmethod
    def figure(self) -> Figure:
        """Draw the result as one matplotlib figure."""

    @abstractmethod
    def summary(self) -> list[dict[str, Any]]:
        """Return a few plain facts per image, unit …, one dictionary each, for tables and JSON."""

    def with_notes(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return rows of a summary with the notes as further columns.

        A note of one value per image is added if there is one row per image. A note whose name is
        that of a column becomes `NAME (noted)`.
        """
        noted = []
        for number, row in enumerate(rows):
            added = {
                name if name not in row else f"{name} (noted)": each
                for name, each in self._notes_of(number, len(rows)).items()
            }
            noted.append(row | added)
        return noted

    def note_text(self, row: int) -> str:
        """Return the notes of an image for a caption: `steps 7, gap 0.012`; empty without notes.

        Points of curves, such as `score at λ 10`, are left out: `save` draws them as `curves.png`.
        """
        from timmscope.drawing.style import format_number

        shown = []
        for name, value in self._notes_of(row).items():
            if value is not None and value is not False and not is_point(name):
                number = type(value) in (int, float)
                text = "" if value is True else format_number(value) if number else str(value)
                shown.append(f"{name.replace('_', ' ')} {text}".rstrip())
        return ", ".join(shown)

    def _notes_of(self, row: int, images: int | None = None) -> dict[str, Any]:
        """Return the notes of one of `images` images; lists of other lengths are left out."""
        return {
            name: values[row] if isinstance(values, list) else values
            for name, values in self.notes.items()
            if not isinstance(values, list) or len(values) == (images or len(values))
        }

    def pictures(self) -> dict[str, Any]:
        """Return pictures that `save` writes besides the figure, by name.

        Each is an image tensor `(3, H, W)` in [0, 1], a matplotlib figure, or a function without
        arguments that makes one of these, so that only one of many pages is in memory.
        """
        return {}

    def animation_frames(self) -> Tensor | None:
        """Return the frames of an animation, `(F, B, C, H, W)` uint8, or None without any."""
        return None

    def save_animation(self, path: str | Path, *, fps: float | None = None) -> Path:
        """Write the frames as WebP, GIF or, by the program ffmpeg, MP4; return the path.

        Several images make a grid. The file's metadata has the provenance as JSON.

        Args:
            path: a name that ends in `.webp`, `.gif` or `.mp4`.
            fps: frames per second, 0.1 to 50; 10 by default.

        Raises:
            ParameterError: the result has no frames, or the name or `fps` is wrong, or MP4 is asked
                for without ffmpeg.
            TimmscopeError: the file cannot be written.
        """
        from timmscope.drawing import FPS, write_animation

        frames = self.animation_frames()
        if frames is None:
            raise ParameterError(
                f"this {type(self).__name__} of {self.provenance.technique} has no frames: run a "
                "technique that has the parameter frames, with frames=30"
            )
        facts = json.dumps(dataclasses.asdict(self.provenance))
        return write_animation(frames, path, fps=FPS if fps is None else fps, description=facts)

    def documents(self) -> dict[str, str]:
        """Return text files that `save` writes besides the pictures, such as CSV tables and pages.

        Keys are file names; values are the contents.
        """
        return {}

    def save(self, directory: str | Path) -> Path:
        """Write figure, pictures, documents, `arrays.h5` and `result.json`; return the directory.

        A result with frames has `animation.webp`, too.

        They replace those of an earlier result together: a process that is killed leaves the
        earlier result or this one, and no mixture.

        Raises:
            TimmscopeError: the directory cannot be written.
        """
        directory = Path(directory)
        try:
            with replaced_together(directory) as folder:
                self._write(folder)
        except (FileExistsError, NotADirectoryError) as error:
            raise TimmscopeError(
                f"{directory}: the result's folder cannot be created, because a file is in its "
                "place; choose another folder"
            ) from error
        except OSError as error:
            raise TimmscopeError(f"cannot write the result to {directory}: {error}") from error
        return directory

    def placed_in(self, folder: Path) -> Self:
        """Take the folder that the result was loaded from; only results with more files need it."""
        return self

    def _repr_html_(self) -> str:
        buffer = io.BytesIO()
        self.figure().savefig(buffer, format="png", dpi=110)
        picture = base64.b64encode(buffer.getvalue()).decode()
        rows = self.summary()
        table = html_table(f"{type(self).__name__} of {self.provenance.technique}", rows, len(rows))
        named = "".join(f"<div>{escape(line)}</div>" for line in self.named_lines())
        return f'<img style="max-width:100%" src="data:image/png;base64,{picture}">{table}{named}'

    def _arrays(self) -> dict[str, Tensor | np.ndarray]:
        torch = sys.modules.get("torch")  # if torch is not imported, there are no tensors
        kinds = np.ndarray if torch is None else (np.ndarray, torch.Tensor)
        return {
            item.name: value
            for item in dataclasses.fields(self)
            if isinstance(value := getattr(self, item.name), kinds)
        }

    def _write(self, folder: Path) -> None:
        from timmscope.drawing import write_png

        written = ["figure.png"]
        self.figure().savefig(folder / "figure.png", dpi=150)
        for name, picture in track(self.pictures().items(), "writing pictures"):
            drawn = picture() if callable(picture) else picture
            if hasattr(drawn, "savefig"):
                drawn.savefig(folder / f"{name}.png", dpi=150)
            else:
                write_png(drawn, folder / f"{name}.png")
            written.append(f"{name}.png")
        curves = note_curves_figure(self.notes, self.provenance.technique.rpartition(":")[2])
        if curves is not None:
            curves.savefig(folder / "curves.png", dpi=150)
            written.append("curves.png")
        if self.animation_frames() is not None:
            self.save_animation(folder / ANIMATION)
            written.append(ANIMATION)
        for name, content in self.documents().items():
            (folder / name).write_text(content, encoding="utf-8", newline="")
            written.append(name)
        arrays = self._arrays_file()
        (folder / ARRAYS).write_bytes(arrays)
        record = self._record(written)
        record["arrays_file"] = {
            "size": len(arrays),
            "sha256": hashlib.sha256(arrays).hexdigest(),
        }
        record = json.loads(json.dumps(record))  # keys become text, so that the digest holds
        (folder / RECORD).write_bytes(checked_json.dump(record, indent=2))

    def _arrays_file(self) -> memoryview:
        """Return the contents of `arrays.h5`; HDF5 writes to memory, as a full disk crashes it."""
        buffer = io.BytesIO()
        with open_hdf5(buffer, "w") as file:
            for name, array in self._arrays().items():
                if not isinstance(array, np.ndarray):
                    array = array.detach().cpu()
                    array = (array.float() if "bfloat16" in str(array.dtype) else array).numpy()
                file.create_dataset(name, data=array, track_times=False)
        return buffer.getbuffer()

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
