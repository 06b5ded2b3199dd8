"""Opens files that come from others: regular files only, and HDF5 that stays inside its own file.

Opening a pipe waits for a writer, ``/dev/zero`` never ends, and an HDF5 file can name other files
(external links, external raw storage, virtual data sets) that HDF5 then opens by itself. Readers
of images, stores and results therefore open every file through this module.
"""

from __future__ import annotations

import errno
import io
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from timmscope_registry import TimmscopeError

if TYPE_CHECKING:
    import h5py
    import numpy as np

# Absent on Windows, where opening never waits and files are text unless O_BINARY is given.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_FLAGS |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

LARGEST_CHUNK = 1 << 28
"""Largest chunk of an HDF5 data set that is read, in bytes; h5py's own are up to 1 MiB."""
DEEPEST = 64
"""Most HDF5 groups inside each other that are searched."""
_HDF5_TABLES = 1 << 20

Location = str | os.PathLike[str]


class UnsafeFile(TimmscopeError, ValueError):
    """A file is no regular file, is too large, or reaches outside itself.

    Readers convert it, as they convert any other damage, into their own error with the name of the
    image or store; as a `ValueError` it is caught together with what libraries raise.

    Attributes:
        reason: what is wrong, without the path.
    """

    def __init__(self, reason: str, path: Location = "") -> None:
        name = os.fspath(path)
        super().__init__(f"{name}: {reason}" if name else reason)
        self.reason = reason


def why(error: Exception) -> str:
    """What an error in reading a file says, on one line and without the file's path."""
    text = error.reason if isinstance(error, UnsafeFile) else str(error)
    text = (isinstance(error, OSError) and error.strerror) or text
    return " ".join(text.split()) or type(error).__name__


def require_regular(path: Location) -> os.stat_result:
    """Check that a path leads to a regular file, without opening it.

    Args:
        path: the file; symbolic links are followed.

    Raises:
        UnsafeFile: it is a pipe, a socket or a device.
        OSError: there is no such file, or it is a folder.
    """
    status = os.stat(path)  # noqa: PTH116 (a million times)
    _require_regular(status, path)
    return status


def open_regular(path: Location, limit: int | None = None) -> io.BufferedReader:
    """Open a regular file for reading; never waits and never opens anything else.

    Args:
        path: the file; symbolic links are followed.
        limit: a file of more bytes is refused.

    Raises:
        UnsafeFile: it is a pipe, a socket or a device, or is larger than `limit`.
        OSError: as for `open`.
    """
    require_regular(path)  # first, because even opening a device can have an effect
    file = open(path, "rb", opener=lambda name, _: os.open(name, _FLAGS))  # noqa: SIM115
    try:
        status = os.fstat(file.fileno())
        _require_regular(status, path)
        if limit is not None and status.st_size > limit:
            raise UnsafeFile(f"{status.st_size} bytes, expected at most {limit}", path)
    except BaseException:
        file.close()
        raise
    return file


def read_regular(path: Location, limit: int) -> bytes:
    """Return the contents of a regular file of at most `limit` bytes.

    Raises:
        UnsafeFile: it is a pipe, a socket or a device, or is larger than `limit`.
        OSError: as for `open` and `read`.
    """
    with open_regular(path, limit) as file:
        data = file.read(limit + 1)  # files of /proc say that they are empty
    if len(data) > limit:
        raise UnsafeFile(f"more than {limit} bytes, the most that is read", path)
    return data


@dataclass(frozen=True)
class ArrayHeader:
    """Shape and type of an array in a file.

    Attributes:
        shape: as NumPy's.
        dtype: as NumPy's.
        offset: in .npy data, the byte at which the values begin.
        fortran: whether they are in Fortran order.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int = 0
    fortran: bool = False

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def npy_header(file: IO[bytes]) -> ArrayHeader:
    """Read the header of .npy data, and none of the values.

    Raises:
        UnsafeFile: a length is negative, or the header is no header.
        ValueError: and other errors of NumPy for a damaged header.
    """
    from numpy.lib import format as npy

    first = npy.read_magic(file) == (1, 0)
    try:
        read = npy.read_array_header_1_0 if first else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except MemoryError:  # of Python's parser
        raise UnsafeFile("the header of the array is damaged") from None
    if min(shape, default=0) < 0:
        raise UnsafeFile(f"the array has the shape {shape}, expected no negative length")
    return ArrayHeader(tuple(map(int, shape)), dtype, file.tell(), bool(fortran))


def read_npy(path: Location) -> np.ndarray:
    """Return the array of a .npy file, which holds all the values that it claims.

    Raises:
        UnsafeFile: it is no regular file, not a .npy file, too short, or holds Python objects.
        OSError: as for `open` and `read`.
    """
    import numpy as np

    with open_regular(path) as file:
        try:
            header = npy_header(file)
        except (OSError, MemoryError, UnsafeFile):
            raise
        except Exception as error:  # NumPy's parser raises many types
            raise UnsafeFile(f"not a .npy file of numbers ({why(error)})", path) from error
        if header.dtype.hasobject:
            raise UnsafeFile("holds Python objects, expected numbers", path)
        held = os.fstat(file.fileno()).st_size - header.offset
        if header.nbytes > held:
            raise UnsafeFile(f"claims {header.nbytes} bytes, the file holds {held}", path)
        values = np.frombuffer(bytearray(file.read(header.nbytes)), header.dtype)
    return values.reshape(header.shape, order="F" if header.fortran else "C")


def open_hdf5(file: Any, mode: str = "r", **options: Any) -> h5py.File:
    """Open a file object as HDF5, with the options of `h5py.File`.

    HDF5 crashes if there is no memory for the half megabyte of tables that it makes for each file,
    so that much is asked for first.

    Raises:
        MemoryError: there is not enough memory.
        OSError: and other errors of h5py; the file is not HDF5, or is damaged.
    """
    import h5py
    import numpy as np

    np.empty(_HDF5_TABLES, np.uint8)
    return h5py.File(file, mode, **options)


def hdf5_member(group: h5py.Group, path: str, *, text: bool = False) -> h5py.Group | h5py.Dataset:
    """Return the object at a path inside a group, reached by hard links only.

    HDF5 follows soft and external links without asking, also in the middle of a path, and an
    external link opens another file.

    Args:
        group: the group or file.
        path: names separated by ``/``.
        text: whether a data set may hold text of variable length.

    Raises:
        UnsafeFile: a part of the path is a soft or external link, or what it leads to is not
            plain (`require_plain`).
        KeyError: there is nothing of that name.
    """
    import h5py

    item: h5py.Group | h5py.Dataset = group
    for part in filter(None, path.split("/")):
        if part in (".", "..") or not isinstance(item, h5py.Group):
            raise KeyError(path)
        name = part.encode("utf-8", "surrogateescape")
        if not item.id.links.exists(name):
            raise KeyError(path)
        if (kind := item.id.links.get_info(name).type) != h5py.h5l.TYPE_HARD:
            what = {h5py.h5l.TYPE_SOFT: "a soft link", h5py.h5l.TYPE_EXTERNAL: "an external link"}
            found = what.get(kind, "a foreign link")
            raise UnsafeFile(f"{path} is reached by {found}, expected data in this file")
        item = item[part]
    if isinstance(item, h5py.Dataset):
        require_plain(item, text=text)
    return item


def hdf5_datasets(group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield every data set below a group with its path, by hard links only and each object once.

    Soft and external links are passed over. (h5py's `visititems` does the same, but takes minutes
    on a few thousand groups inside each other.)

    Raises:
        UnsafeFile: there are more than `DEEPEST` groups inside each other.
    """
    import h5py

    seen: set[tuple[int, int]] = set()
    waiting: list[tuple[str, h5py.Group]] = [("", group)]
    while waiting:
        above, parent = waiting.pop()
        if above.count("/") > DEEPEST:
            raise UnsafeFile(f"more than {DEEPEST} groups inside each other")
        for name in parent:
            encoded = name.encode("utf-8", "surrogateescape")
            if parent.id.links.get_info(encoded).type != h5py.h5l.TYPE_HARD:
                continue
            item = parent[name]
            place = h5py.h5o.get_info(item.id)
            if (key := (place.fileno, place.addr)) in seen:
                continue
            seen.add(key)
            if isinstance(item, h5py.Dataset):
                yield above + name, item
            elif isinstance(item, h5py.Group):
                waiting.append((f"{above}{name}/", item))


def require_plain(item: h5py.Group | h5py.Dataset, *, text: bool = False) -> None:
    """Check that a data set, or every data set below a group, has its values in its own file.

    This comes before the shape is read, because reading the shape of a virtual data set opens its
    sources.

    Args:
        item: the data set or group.
        text: whether a data set may hold text of variable length.

    Raises:
        UnsafeFile: a data set has external storage, is virtual, or has a type of objects,
            references or variable length; or groups are nested too deeply.
    """
    import h5py

    if not isinstance(item, h5py.Dataset):
        for _, dataset in hdf5_datasets(item):
            require_plain(dataset, text=text)
        return
    created = item.id.get_create_plist()
    if created.get_layout() == h5py.h5d.VIRTUAL:
        raise UnsafeFile(f"{item.name} is a virtual data set, expected data in this file")
    if created.get_external_count():
        raise UnsafeFile(f"{item.name} has external storage, expected data in this file")
    try:
        dtype = item.dtype
    except TypeError as error:  # NumPy has no such type
        raise UnsafeFile(f"{item.name} has a type that cannot be read ({error})") from error
    if dtype.hasobject and not (text and h5py.check_string_dtype(dtype)):
        raise UnsafeFile(
            f"{item.name} has a type of objects, references or variable length, expected numbers "
            "or text of fixed length"
        )


def require_stored(dataset: h5py.Dataset) -> None:
    """Check that every value that a plain data set claims to have is stored in the file.

    HDF5 reads what was never written as zeros, so that a few bytes can claim any number of rows;
    and it unpacks a chunk as a whole, so that a few bytes can take any memory.

    Raises:
        UnsafeFile: a part of the values was never written, or a chunk is above `LARGEST_CHUNK`.
    """
    if dataset.size is None or dataset.size == 0:
        return
    itemsize = dataset.dtype.itemsize
    if dataset.chunks is None:
        claimed, unit = dataset.size * itemsize, "bytes"
        left = dataset.file.id.get_filesize() - (dataset.id.get_offset() or 0)
        stored = max(0, min(dataset.id.get_storage_size(), left))
    else:
        if (size := math.prod(dataset.chunks) * itemsize) > LARGEST_CHUNK:
            raise UnsafeFile(
                f"{dataset.name} has chunks of {size} bytes, expected at most {LARGEST_CHUNK}"
            )
        lengths = zip(dataset.shape, dataset.chunks, strict=True)
        claimed = math.prod(-(-length // chunk) for length, chunk in lengths)
        stored, unit = dataset.id.get_num_chunks(), "chunks"
    if stored < claimed:
        raise UnsafeFile(f"{dataset.name} claims {claimed} {unit}, the file holds {stored}")


def _require_regular(status: os.stat_result, path: Location) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeFile("a pipe or a device, not a file; leave it out", path)
