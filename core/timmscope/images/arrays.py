"""Reads images from one array in a .npy, .npz or HDF5 file."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import h5py
import numpy as np
from PIL import Image

from timmscope_registry import ImageError

from .decode import array_to_rgb
from .presence import Presence
from .source import ImageSource, PerProcess, digest_file, require_file
from .tables import LabelTable, StringTable, decode

if TYPE_CHECKING:
    from collections.abc import Sequence

_SAMPLES = 1024
_IMAGE_NAMES = ("images", "image")
_LABEL_NAMES = ("labels", "label", "y", "y_train", "targets")
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
"""What the libraries raise on a damaged file."""


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
        require_file(self._file)
        arrays = self._describe()
        self._key = _choose(arrays, query, self._file)
        self._shape, self._dtype = arrays[self._key]
        if self._shape[0] == 0:
            raise ImageError(f"{self._file}: the array {self._key!r} is empty")
        if self._dtype not in ("uint8", "uint16", "float16", "float32", "float64"):
            raise ImageError(
                f"{self._file}: images of type {self._dtype}; "
                "expected uint8, uint16 or floats in [0, 1]",
                path=self._file,
            )
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
        try:
            pixels = np.asarray(self._array.get()[index])
        except _DAMAGED as error:
            raise ImageError(f"{name}: cannot be read ({error})", path=name) from error
        return array_to_rgb(pixels, name)

    def unreachable(self) -> str:
        """Say why the file cannot be reached any more; empty while it can."""
        return self._presence.unreachable()

    def fingerprint(self) -> str:
        """Digest of the array's name, shape and type, and of 1,024 samples of the file."""
        digest = hashlib.sha256(f"{self._key}|{self._shape}|{self._dtype}".encode())
        digest.update(digest_file(self._file, _SAMPLES))
        return digest.hexdigest()

    # --- the three file formats ---------------------------------------------------------------

    def _describe(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of every array in the file, without reading one."""
        try:
            if self._file.suffix == ".npy":
                array = np.load(self._file, mmap_mode="r", allow_pickle=False)
                if not isinstance(array, np.ndarray):
                    raise ValueError("it holds several arrays: rename it to .npz")
                return {"": (array.shape, str(array.dtype))}
            if self._file.suffix == ".npz":
                with zipfile.ZipFile(self._file) as archive:
                    return {
                        name.removesuffix(".npy"): (shape, str(dtype))
                        for name in archive.namelist()
                        if name.endswith(".npy")
                        for shape, dtype, _, _ in [_npy_header(archive, name)]
                    }
            arrays: dict[str, tuple[tuple[int, ...], str]] = {}
            with h5py.File(self._file, "r") as file:
                file.visititems(
                    lambda name, item: (
                        arrays.__setitem__(name, (item.shape, str(item.dtype)))
                        if isinstance(item, h5py.Dataset) and item.shape is not None
                        else None
                    )
                )
            return arrays
        except _DAMAGED as error:
            raise ImageError(
                f"{self._file}: cannot read this array file ({error})", path=self._file
            ) from error

    def _open(self, key: str | None = None) -> Any:
        name = self._key if key is None else key
        if self._file.suffix == ".npy":
            return _rows(np.load(self._file, mmap_mode="r", allow_pickle=False))
        if self._file.suffix == ".npz":
            return _rows(_open_npz(self._file, name))
        return h5py.File(self._file, "r")[name]

    def _read_labels(self, arrays: dict[str, tuple[tuple[int, ...], str]]) -> LabelTable | None:
        for name, (shape, _) in arrays.items():
            if name.rsplit("/", 1)[-1].lower() in _LABEL_NAMES and shape == self._shape[:1]:
                try:
                    column = self._open(name)[:]
                except _DAMAGED as error:
                    raise ImageError(
                        f"{self._file}: its {name} cannot be read ({error})", path=self._file
                    ) from error
                return LabelTable(map(_label, column))
        return None


def _choose(arrays: dict[str, tuple[tuple[int, ...], str]], wanted: str, file: Path) -> str:
    """Return the name of the array with the images: the one requested, or the only candidate."""
    listing = ", ".join(f"{name} {shape}".strip() for name, (shape, _) in arrays.items())
    listing = listing or "nothing"
    if wanted:
        if wanted not in arrays:
            raise ImageError(f"{file}: no array {wanted!r}; it holds {listing}", path=file)
        return wanted
    candidates = [name for name, (shape, _) in arrays.items() if _is_images(shape)]
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

    def __init__(self, array: np.memmap[Any, Any]) -> None:
        self._dtype, self._shape, self._offset = array.dtype, array.shape[1:], array.offset
        path = Path(cast("str", array.filename))
        self._file = path.open("rb", buffering=0)
        self._count, self._bytes = len(array), array.nbytes // len(array)

    def __getitem__(self, index: int) -> np.ndarray:
        index = range(self._count)[index]  # a negative index counts from the end
        raw = os.pread(self._file.fileno(), self._bytes, self._offset + index * self._bytes)
        return np.frombuffer(raw, self._dtype).reshape(self._shape)


def _rows(array: np.ndarray) -> Any:
    """Return rows read from the file if the array is stored there row by row, else the array."""
    by_row = array.ndim > 1 and array.flags.c_contiguous and hasattr(os, "pread")
    return _FileRows(array) if by_row and isinstance(array, np.memmap) else array


def _npy_header(
    archive: zipfile.ZipFile, name: str
) -> tuple[tuple[int, ...], np.dtype[Any], int, bool]:
    """Return shape, type, header length in bytes, and whether in Fortran order, of a member."""
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(member)
        return shape, dtype, member.tell(), fortran


def _open_npz(file: Path, name: str) -> Any:
    """Memory-map an uncompressed member of the file; read a compressed one."""
    with zipfile.ZipFile(file) as archive:
        info = archive.getinfo(f"{name}.npy")
        shape, dtype, header, fortran = _npy_header(archive, info.filename)
        if dtype.hasobject:  # a memory map would take its bytes for addresses
            raise ImageError(
                f"{file}: the array {name!r} holds Python objects, which are never unpickled; "
                "save it as text or numbers",
                path=file,
            )
        if info.compress_type != zipfile.ZIP_STORED:
            with np.load(file, allow_pickle=False) as arrays:
                return arrays[name]
    with file.open("rb") as raw:  # the zip's directory lacks the length of the local header
        raw.seek(info.header_offset + 26)
        name_length, extra_length = np.frombuffer(raw.read(4), dtype="<u2")
    offset = info.header_offset + 30 + int(name_length) + int(extra_length) + header
    return np.memmap(
        file, dtype=dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C"
    )
