"""Reads the folder of a run over an image set: what was made of each image, as images again.

`over.json` holds the settings of the run and `records.jsonl` one line per chunk of images, with
their names, labels, facts and checksums. `images.npy` or `maps.npy` holds one row of float32 per
image. Nothing in the folder is used before it was checked.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from PIL import Image

from timmscope.images import ImageSource, LabelTable, PerProcess, StringTable, array_to_rgb
from timmscope.images.arrays import npy_rows
from timmscope.images.source import digest_file
from timmscope.safe_files import why
from timmscope_registry import ImageError, StoreCorrupted, StoreError

from .records import RECORDS, Record, read_records, read_settings

KIND = "over"
"""Kind of the run; its settings are in `over.json`."""
KEPT = ("images", "maps", "")
"""What a run keeps of each image besides facts: an image, a map, or nothing."""
_SAMPLES = 1024


class Missing(NamedTuple):
    """Why a run has nothing of an image: it was `unreadable`, or `refused` by the technique."""

    why: str
    reason: str


@dataclass(frozen=True)
class Run:
    """What the folder of a run holds, without facts and rows.

    Attributes:
        folder: the folder.
        count: number of images of the run.
        done: number of images that it has worked through.
        kept: what is kept of each image: `images`, `maps` or nothing.
        shape: shape of each row that is kept; empty if none is.
        names: name of each image that is done.
        labels: label of each image that is done; None if the images have none.
        missing: images of which there is nothing, by number.
        checksums: `(done,)` XXH3 of each row.
    """

    folder: Path
    count: int
    done: int
    kept: str
    shape: tuple[int, ...]
    names: StringTable
    labels: LabelTable | None
    missing: dict[int, Missing]
    checksums: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read the run in a folder.

        Raises:
            StoreCorrupted: its files were damaged, or are of something else.
            StoreError: they cannot be read now.
        """
        settings = read_settings(folder, KIND)
        names: list[str] = []
        labels: list[str | None] = []
        checksums: list[int] = []
        missing: dict[int, Missing] = {}
        shape: tuple[int, ...] = ()
        try:
            count, kept = int(settings["images"]["count"]), settings["kept"]
            if kept not in KEPT:
                raise ValueError(f"it keeps {kept!r}")
            for record in read_records(folder):
                _check(record, len(names), count)
                names += record["names"]
                labels += record["labels"] or [None] * len(record["names"])
                checksums += [int(each, 16) for each in record["checksums"]]
                shape = tuple(map(int, record["shape"])) or shape
                missing |= {int(key): Missing(*each) for key, each in record["missing"].items()}
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise StoreCorrupted(
                f"{folder}: its {KIND}.json or {RECORDS} holds something else ({why(error)}); "
                "restore them from a copy, or run again into another folder"
            ) from error
        return cls(
            folder=folder,
            count=count,
            done=len(names),
            kept=kept,
            shape=shape,
            names=StringTable(names),
            labels=LabelTable(labels) if any(label is not None for label in labels) else None,
            missing=missing,
            checksums=np.array(checksums, np.uint64),
        )

    def rows(self) -> KeptRows:
        """Return what is kept of each image.

        Raises:
            StoreCorrupted: the array does not fit the records.
        """
        return KeptRows(self)


def _check(record: Record, done: int, count: int) -> None:
    """Refuse a record whose columns do not fit together.

    Raises:
        ValueError: it is one.
    """
    names, labels, start, stop = (record[key] for key in ("names", "labels", "start", "stop"))
    if start != done or not start < stop <= count or len(names) != stop - start:
        raise ValueError(f"images {start} to {stop} after {done} of {count}")
    if not all(isinstance(name, str) for name in names):
        raise ValueError("a name is no text")
    if labels is not None and len(labels) != len(names):
        raise ValueError(f"{len(labels)} labels of {len(names)} images")
    if not all(label is None or isinstance(label, str) for label in labels or ()):
        raise ValueError("a label is no text")
    if len(record["checksums"]) not in (0, len(names)):
        raise ValueError(f"{len(record['checksums'])} checksums of {len(names)} images")
    if len(record["shape"]) > 3 or not all(
        isinstance(size, int) and size > 0 for size in record["shape"]
    ):
        raise ValueError(f"the shape {record['shape']}")


class KeptRows(Sequence[np.ndarray]):
    """The rows of a run, float32, read one at a time and compared with their checksums.

    Raises:
        StoreCorrupted: the array does not fit the records.
    """

    def __init__(self, run: Run) -> None:
        self._file = run.folder / f"{run.kept}.npy"
        self._shape = (run.count, *run.shape)
        self._checksums, self._names, self._missing = run.checksums, run.names, run.missing
        self._rows: PerProcess[Any] = PerProcess(self._open)
        try:
            self._rows.get()
        except (OSError, ValueError) as error:
            raise StoreCorrupted(
                f"{self._file}: does not hold what the run kept ({why(error)}); restore it from a "
                "copy, or run again into another folder"
            ) from error

    def __len__(self) -> int:
        return self._shape[0]

    def __getitem__(self, index: Any) -> Any:
        """Return a row.

        Raises:
            ImageError: there is none of this image, or it was damaged.
        """
        index = range(len(self))[index]
        name = self._names[index]
        if index in self._missing:
            missing = self._missing[index]
            raise ImageError(f"{name}: {missing.why} in the run ({missing.reason})", path=name)
        try:
            row = np.array(self._rows.get()[index])  # torch warns of rows that cannot be written
        except (OSError, ValueError) as error:
            raise ImageError(f"{name}: cannot be read ({why(error)})", path=name) from error
        if xxhash.xxh3_64_intdigest(row.data) != self._checksums[index]:
            raise ImageError(f"{name}: differs from its checksum, so it was damaged", path=name)
        return row

    def _open(self) -> Any:
        return npy_rows(self._file, self._shape, np.dtype("<f4"))


class RunImages(ImageSource):
    """The images that a run over an image set has made, with the names and labels of the originals.

    Models of the same input size take them as floats, as they were made.

    Args:
        location: folder of the run.

    Raises:
        ImageError: the folder holds no finished run, one that keeps no images, or a damaged one.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        folder = Path(location).resolve()
        try:
            run = Run.read(folder)
            if run.done < run.count:
                raise ImageError(
                    f"{folder}: its run has done {run.done} of {run.count} images; finish it first",
                    path=folder,
                )
            if run.kept != "images" or not run.shape:
                what = run.kept if run.shape else "no image"
                raise ImageError(
                    f"{folder}: its run has kept {what or 'facts, and no images'}; name the images "
                    "that it ran over",
                    path=folder,
                )
            self._rows = run.rows()
        except (StoreError, OSError) as error:
            raise ImageError(f"{folder}: no run can be read ({error})", path=folder) from error
        self._run = run
        self.location = f"{KIND}:{folder}"

    def __len__(self) -> int:
        return self._run.count

    @property
    def paths(self) -> Sequence[str]:
        """The names of the originals."""
        return self._run.names

    @property
    def labels(self) -> LabelTable | None:
        """The labels of the originals."""
        return self._run.labels

    def load(self, index: int) -> Image.Image:
        """Return one image, rounded to 8 bits."""
        return array_to_rgb(self.pixels(index), self._run.names[index])

    def pixels(self, index: int) -> np.ndarray:
        """Return one image as it was made, `(C, H, W)` float32 in [0, 1]."""
        row: np.ndarray = self._rows[index]
        if not (float(row.min()) >= 0 and float(row.max()) <= 1):  # also of NaN
            name = self._run.names[index]
            raise ImageError(f"{name}: values outside [0, 1]", path=name)
        return row

    def unreachable(self) -> str:
        """Say why the folder cannot be reached any more; empty while it can."""
        try:
            os.stat(self._run.folder / "images.npy")  # noqa: PTH116
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def fingerprint(self) -> str:
        """Digest of the settings, the records, and 1,024 samples of the images."""
        digest = hashlib.sha256()
        for name in (f"{KIND}.json", RECORDS, "images.npy"):
            digest.update(digest_file(self._run.folder / name, _SAMPLES))
        return digest.hexdigest()


def read_facts(folder: Path) -> Iterator[tuple[int, str, str | None, dict[str, Any]]]:
    """Yield number, name, label and facts of every image of a run of which there are facts.

    Raises:
        StoreCorrupted: the records are damaged, or of something else.
    """
    for record in read_records(folder):
        try:
            missing, facts = record["missing"], record["facts"]
            made = [n for n in range(record["start"], record["stop"]) if str(n) not in missing]
            if any(len(values) != len(made) for values in facts.values()):
                raise ValueError(f"facts of other images than {len(made)}")
            for place, number in enumerate(made):
                row = number - record["start"]
                label = record["labels"][row] if record["labels"] else None
                own = {name: _decoded(values[place]) for name, values in facts.items()}
                yield number, record["names"][row], label, own
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise StoreCorrupted(
                f"{folder / RECORDS} holds something else ({why(error)}); restore it from a copy"
            ) from error


_NOT_FINITE = {"inf": float("inf"), "-inf": float("-inf")}


def encoded(value: Any) -> Any:
    """Return a fact as JSON holds it; infinity, which JSON lacks, as an object."""
    if isinstance(value, float) and not np.isfinite(value):
        return None if np.isnan(value) else {"number": str(value)}
    return value


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        return _NOT_FINITE[value["number"]]
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(f"a fact of type {type(value).__name__}")
    return value
