"""Images in one array: NumPy's .npy and .npz, or HDF5."""

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
_IMAGE_NAMES = ("images", "image", "x", "x_train", "data", "arr_0")
_LABEL_NAMES = ("labels", "label", "y", "y_train", "targets")
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
"""What the libraries raise on a damaged file."""


class ArraySource(ImageSource):
    """Images in an array of shape (N, H, W, 3), (N, H, W, 1), (N, H, W) or (N, 3, H, W).

    uint8, uint16 (65535 is white) or floats in [0, 1]. ``file.h5?key=name`` picks an array; by
    default it is the one called ``images``, or the only one that has the right shape. A
    one-dimensional array called ``labels`` or ``y`` of the same length gives the labels.

    Rows are read one at a time: from HDF5, .npy and uncompressed .npz through the file, from
    compressed .npz after reading the whole array into each process.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        text, _, query = os.fspath(location).partition("?key=")
        self._file = Path(text).resolve()
        require_file(self._file)
        arrays = self._describe()
        self._key = _choose(arrays, query, self._file)
        self._shape, self._dtype = arrays[self._key]
        if self._shape[0] == 0:
            raise ImageError(f"{self._file}: the array {self._key!r} holds no image")
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
        """The file's name and the row, as in ``digits.npz[3]``."""
        return self._paths

    @property
    def labels(self) -> LabelTable | None:
        """Labels from the array beside the images, as text."""
        return self._labels

    def load(self, index: int) -> Image.Image:
        """Return one row as RGB; `ImageError` for values that are not pixels."""
        name = self._paths[index]
        try:
            pixels = np.asarray(self._array.get()[index])
        except _DAMAGED as error:
            raise ImageError(f"{name}: cannot be read ({error})", path=name) from error
        return array_to_rgb(pixels, name)

    def lost(self) -> str:
        """Say why the file can no longer be reached, or nothing."""
        return self._presence.lost()

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
                    raise ValueError("it holds several arrays: call it .npz")
                return {"": (array.shape, str(array.dtype))}
            if self._file.suffix == ".npz":
                with zipfile.ZipFile(self._file) as archive:
                    return {
                        name.removesuffix(".npy"): (shape, str(dtype))
                        for name in archive.namelist()
                        if name.endswith(".npy")
                        for shape, dtype, _, _ in [_npy_header(archive, name)]
                    }
            found: dict[str, tuple[tuple[int, ...], str]] = {}
            with h5py.File(self._file, "r") as file:
                file.visititems(
                    lambda name, item: (
                        found.__setitem__(name, (item.shape, str(item.dtype)))
                        if isinstance(item, h5py.Dataset) and item.shape is not None
                        else None
                    )
                )
            return found
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
    listing = ", ".join(f"{name} {shape}".strip() for name, (shape, _) in arrays.items())
    listing = listing or "nothing"
    if wanted:
        if wanted not in arrays:
            raise ImageError(f"{file}: no array {wanted!r}; it holds {listing}", path=file)
        return wanted
    fitting = [name for name, (shape, _) in arrays.items() if _is_images(shape)]
    for name in fitting:
        if len(fitting) == 1 or name.rsplit("/", 1)[-1].lower() in _IMAGE_NAMES[:2]:
            return name
    if not fitting:
        raise ImageError(
            f"{file}: holds {listing}; expected images of shape (N, H, W, 3), (N, H, W) or "
            "(N, 3, H, W)",
            path=file,
        )
    raise ImageError(
        f"{file}: {len(fitting)} arrays look like images (N, H, W, 3); it holds {listing}; "
        "pick one with ?key=NAME",
        path=file,
    )


def _is_images(shape: tuple[int, ...]) -> bool:
    channels = len(shape) == 4 and (shape[3] in (1, 3) or shape[1] in (1, 3))
    return channels or len(shape) == 3


def _label(value: Any) -> str | None:
    """A label's text; None where there is none: empty text, or NaN among numbers."""
    text = decode(value) if isinstance(value, bytes) else str(value)
    return None if isinstance(value, float | np.floating) and np.isnan(value) else text or None


class _FileRows:
    """Rows of an array in a file, read one by one.

    Every page touched of a mapped array counts as the process's memory, and the process dies where
    the file was cut short.
    """

    def __init__(self, array: np.memmap[Any, Any]) -> None:
        self._dtype, self._shape, self._offset = array.dtype, array.shape[1:], array.offset
        path = Path(cast("str", array.filename))
        self._file = path.open("rb", buffering=0)
        self._count, self._bytes = len(array), array.nbytes // len(array)

    def __getitem__(self, index: int) -> np.ndarray:
        index = range(self._count)[index]  # from the end, where it is negative
        raw = os.pread(self._file.fileno(), self._bytes, self._offset + index * self._bytes)
        return np.frombuffer(raw, self._dtype).reshape(self._shape)


def _rows(array: np.ndarray) -> Any:
    """The array's rows read from its file where it is one that lies there row by row."""
    by_row = array.ndim > 1 and array.flags.c_contiguous and hasattr(os, "pread")
    return _FileRows(array) if by_row and isinstance(array, np.memmap) else array


def _npy_header(
    archive: zipfile.ZipFile, name: str
) -> tuple[tuple[int, ...], np.dtype[Any], int, bool]:
    """Shape, type, length of the header in bytes and order of one member of an .npz."""
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
    """Map a stored member straight from the file; read a compressed one."""
    with zipfile.ZipFile(file) as archive:
        info = archive.getinfo(f"{name}.npy")
        shape, dtype, header, fortran = _npy_header(archive, info.filename)
        if dtype.hasobject:  # mapped, its bytes would be taken for addresses
            raise ImageError(
                f"{file}: the array {name!r} holds Python objects, which are never unpickled; "
                "save it as text or numbers",
                path=file,
            )
        if info.compress_type != zipfile.ZIP_STORED:
            with np.load(file, allow_pickle=False) as arrays:
                return arrays[name]
    with file.open("rb") as raw:  # the local header's length is not in the zip's directory
        raw.seek(info.header_offset + 26)
        name_length, extra_length = np.frombuffer(raw.read(4), dtype="<u2")
    offset = info.header_offset + 30 + int(name_length) + int(extra_length) + header
    return np.memmap(
        file, dtype=dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C"
    )
