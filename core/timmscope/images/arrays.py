"""Reads images from one array in a .npy, .npz or HDF5 file."""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from timmscope.safe_files import (
    ArrayHeader,
    UnsafeFile,
    hdf5_datasets,
    hdf5_member,
    npy_header,
    open_hdf5,
    open_regular,
    require_plain,
    require_stored,
    why,
)
from timmscope_registry import ImageError

from .decode import array_to_rgb
from .presence import Presence
from .source import ImageSource, PerProcess, digest_file
from .tables import LabelTable, StringTable, decode

if TYPE_CHECKING:
    from collections.abc import Sequence

_SAMPLES = 1024
_IMAGE_NAMES = ("images", "image")
_TYPES = ("uint8", "uint16", "float16", "float32", "float64")
_LABEL_NAMES = ("labels", "label", "y", "y_train", "classes", "targets")
"""Names of arrays of labels; an earlier one wins."""
_DEFLATED = 2000
"""A member of a .npz cannot unpack to more than this many times its bytes; deflate reaches 1032."""


class ArraySource(ImageSource):
    """Images in an array of shape (N, H, W, 3), (N, H, W, 1), (N, H, W) or (N, 3, H, W).

    The type is uint8, uint16 (65535 is white) or float in [0, 1]. ``file.h5?key=name`` selects an
    array; by default it is the one called ``images``, or the only one with such a shape. A
    one-dimensional array of the same length called ``labels`` or ``y`` gives the labels.

    Images are read one at a time, directly from the file. Only a compressed .npz is read into
    memory as a whole, once per process.

    Args:
        location: path of the file, optionally followed by ``?key=NAME``.

    Raises:
        ImageError: the file cannot be read, or has no array, or several, that may be the images.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        text, _, query = os.fspath(location).partition("?key=")
        self._file = Path(text).resolve()
        self._suffix = self._file.suffix.lower()
        with self._readable(str(self._file)):
            arrays, refused = self._describe()
        if query in refused or (refused and not any(_is_images(h.shape) for h in arrays.values())):
            error = refused.get(query) or next(iter(refused.values()))
            raise ImageError(f"{self._file}: {error}", path=self._file)
        self._key = _choose(arrays, query, self._file)
        self._shape, self._dtype = arrays[self._key].shape, arrays[self._key].dtype
        if math.prod(self._shape) == 0:
            raise ImageError(f"{self._file}: the array {self._key!r} is empty", path=self._file)
        if self._dtype.newbyteorder("=").name not in _TYPES:
            raise ImageError(
                f"{self._file}: images of type {self._dtype}; "
                "expected uint8, uint16 or floats in [0, 1]",
                path=self._file,
            )
        with self._readable(str(self._file)):
            self._require_stored(self._key, arrays[self._key])
        self._labels = self._read_labels(arrays)
        self._paths = StringTable(f"{self._file.name}[{i}]" for i in range(self._shape[0]))
        self._array: PerProcess[Any] = PerProcess(self._open)
        self._presence = Presence(1, lambda _: str(self._file))
        self.location = f"array:{self._file}?key={self._key}"

    def __len__(self) -> int:
        return self._shape[0]

    @property
    def paths(self) -> Sequence[str]:
        """Names made of the file's name and the row, as in ``digits.npz[3]``."""
        return self._paths

    @property
    def labels(self) -> LabelTable | None:
        """Labels from the array of labels in the same file, as text."""
        return self._labels

    def load(self, index: int) -> Image.Image:
        """Return one row as RGB; raises `ImageError` if it cannot be read or is no valid image."""
        name = self._paths[index]
        with self._readable(name):
            pixels = np.asarray(self._array.get()[index])
        return array_to_rgb(pixels, name)

    def unreachable(self) -> str:
        """Say why the file cannot be reached any more; empty while it can."""
        return self._presence.unreachable()

    def fingerprint(self) -> str:
        """Digest of the array's name, shape and type, and of 1,024 samples of the file."""
        digest = hashlib.sha256(f"{self._key}|{self._shape}|{self._dtype}".encode())
        digest.update(digest_file(self._file, _SAMPLES))
        return digest.hexdigest()

    @contextmanager
    def _readable(self, name: str) -> Iterator[None]:
        """Turn what the libraries raise on a damaged file into an `ImageError` with a name."""
        try:
            yield
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # of many types
            raise ImageError(f"{name}: cannot be read ({why(error)})", path=name) from error

    # --- the three file formats ---------------------------------------------------------------

    def _describe(self) -> tuple[dict[str, ArrayHeader], dict[str, UnsafeFile]]:
        """Every array in the file by name, and why others are refused, without reading one."""
        arrays: dict[str, ArrayHeader] = {}
        refused: dict[str, UnsafeFile] = {}
        with open_regular(self._file) as file:
            if self._suffix == ".npy":
                return {"": npy_header(file)}, refused
            if self._suffix == ".npz":
                with zipfile.ZipFile(file) as archive:
                    for name in archive.namelist():
                        if name.endswith(".npy"):
                            with archive.open(name) as member:
                                arrays[name.removesuffix(".npy")] = npy_header(member)
                    return arrays, refused
        with open_hdf5(self._file) as opened:
            for name, dataset in hdf5_datasets(opened):
                try:
                    require_plain(dataset, text=True)
                except UnsafeFile as error:
                    refused[name] = error
                    continue
                if dataset.shape is not None:
                    arrays[name] = ArrayHeader(dataset.shape, dataset.dtype)
        return arrays, refused

    def _require_stored(self, name: str, header: ArrayHeader) -> None:
        """Check that the file is large enough for what an array claims to hold.

        Raises:
            UnsafeFile: it is not.
        """
        if self._suffix not in (".npy", ".npz"):
            with open_hdf5(self._file) as file:
                require_stored(hdf5_member(file, name, text=True))
            return
        size = self._file.stat().st_size
        if self._suffix == ".npz":
            with zipfile.ZipFile(self._file) as archive:
                info = archive.getinfo(f"{name}.npy")
            packed = info.compress_type != zipfile.ZIP_STORED
            held = min(info.compress_size, size) * (_DEFLATED if packed else 1)
            size = min(info.file_size, held)
        if header.offset + header.nbytes > size:
            raise UnsafeFile(
                f"the array {name!r} claims {header.nbytes} bytes, the file holds less"
            )

    def _open(self, key: str | None = None) -> Any:
        name = self._key if key is None else key
        if self._suffix == ".npy":
            with open_regular(self._file) as file:
                header = npy_header(file)
            return _rows(self._file, header, 0)
        if self._suffix == ".npz":
            return _open_npz(self._file, name)
        return hdf5_member(open_hdf5(self._file), name, text=True)

    def _read_labels(self, arrays: dict[str, ArrayHeader]) -> LabelTable | None:
        known = {name: name.rsplit("/", 1)[-1].lower() for name in arrays}
        found = [
            name
            for name, header in arrays.items()
            if known[name] in _LABEL_NAMES and header.shape == self._shape[:1]
        ]
        if not found:
            return None
        name = min(found, key=lambda name: _LABEL_NAMES.index(known[name]))
        with self._readable(f"{self._file}: its {name}"):
            self._require_stored(name, arrays[name])
            column = self._open(name)[:]
        return LabelTable(map(_label, column))


def _choose(arrays: dict[str, ArrayHeader], wanted: str, file: Path) -> str:
    """Return the name of the array with the images: the one requested, or the only candidate."""
    listing = ", ".join(f"{name} {header.shape}".strip() for name, header in arrays.items())
    listing = listing or "nothing"
    if wanted:
        if wanted not in arrays:
            raise ImageError(f"{file}: no array {wanted!r}; it holds {listing}", path=file)
        return wanted
    candidates = [name for name, header in arrays.items() if _is_images(header.shape)]
    for name in candidates:
        if len(candidates) == 1 or name.rsplit("/", 1)[-1].lower() in _IMAGE_NAMES:
            return name
    if not candidates:
        raise ImageError(
            f"{file}: holds {listing}; expected images of shape (N, H, W, 3), (N, H, W) or "
            "(N, 3, H, W)",
            path=file,
        )
    raise ImageError(
        f"{file}: {len(candidates)} arrays look like images (N, H, W, 3); it holds {listing}; "
        "select one with ?key=NAME",
        path=file,
    )


def _is_images(shape: tuple[int, ...]) -> bool:
    channels = len(shape) == 4 and (shape[3] in (1, 3) or shape[1] in (1, 3))
    return channels or len(shape) == 3


def _label(value: Any) -> str | None:
    """The label as text; None for empty text, and for NaN in an array of numbers."""
    text = decode(value) if isinstance(value, bytes) else str(value)
    return None if isinstance(value, float | np.floating) and np.isnan(value) else text or None


class _FileRows:
    """Rows of an array in a file, read one by one.

    A memory-mapped array would count every page read as memory of the process, and would kill the
    process if the file were cut short.
    """

    def __init__(self, path: Path, header: ArrayHeader, start: int) -> None:
        self._dtype, self._shape = header.dtype, header.shape[1:]
        self._offset, self._count = start + header.offset, header.shape[0]
        self._bytes = math.prod(self._shape) * self._dtype.itemsize
        self._file = open_regular(path)

    def __getitem__(self, index: int) -> np.ndarray:
        index = range(self._count)[index]  # a negative index counts from the end
        raw = os.pread(self._file.fileno(), self._bytes, self._offset + index * self._bytes)
        return np.frombuffer(raw, self._dtype).reshape(self._shape)


def npy_rows(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """Return the array of a .npy file, to be read row by row, after checking its size.

    Args:
        path: the file.
        shape: the shape that it must have.
        dtype: the type that it must have.

    Raises:
        UnsafeFile: it has another shape or type, or holds less than it claims.
        OSError: it cannot be opened.
    """
    with open_regular(path) as file:
        header = npy_header(file)
        size = os.fstat(file.fileno()).st_size
    if header.shape != shape or header.dtype != dtype or header.fortran:
        raise UnsafeFile(f"it holds {header.dtype} {header.shape}, expected {dtype} {shape}")
    if header.offset + header.nbytes > size:
        raise UnsafeFile(f"it claims {header.nbytes} bytes, and holds less")
    return _rows(path, header, 0)


def _rows(path: Path, header: ArrayHeader, start: int) -> Any:
    """Return an array whose .npy data begin at a byte of a file, to be read row by row if it can.

    Args:
        path: the file.
        header: the array's.
        start: the byte at which the header begins.
    """
    if len(header.shape) > 1 and not header.fortran and hasattr(os, "pread"):
        return _FileRows(path, header, start)
    order: Literal["F", "C"] = "F" if header.fortran else "C"
    offset = start + header.offset
    return np.memmap(path, header.dtype, "r", offset, header.shape, order)


def _open_npz(file: Path, name: str) -> Any:
    """Read the rows of an uncompressed member of the file; read a compressed member as a whole."""
    with open_regular(file) as raw, zipfile.ZipFile(raw) as archive:
        info = archive.getinfo(f"{name}.npy")
        with archive.open(info) as member:
            header = npy_header(member)
            if header.dtype.hasobject:  # a memory map would take its bytes for addresses
                raise ImageError(
                    f"{file}: the array {name!r} holds Python objects, which are never unpickled; "
                    "save it as text or numbers",
                    path=file,
                )
            if info.compress_type != zipfile.ZIP_STORED:
                data = member.read(header.nbytes)
                order: Literal["F", "C"] = "F" if header.fortran else "C"
                return np.frombuffer(data, header.dtype).reshape(header.shape, order=order)
        raw.seek(info.header_offset + 26)  # the zip's directory lacks the local header's length
        name_length, extra_length = np.frombuffer(raw.read(4), dtype="<u2")
    start = info.header_offset + 30 + int(name_length) + int(extra_length)
    return _rows(file, header, start)
