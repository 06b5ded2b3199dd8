"""Writes and reads FAISS's part of an index file, so that a full disk or a forged size is an error.

FAISS does not notice that the last bytes of a file did not fit on the disk, so Python writes for
it. When FAISS reads, it reserves whatever memory a file asks for, up to 1 TiB; here, no more than
the file can fill.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from timmscope.index.faiss_threads import faiss_library
from timmscope.safe_files import require_regular

_SLACK = 1 << 20
_limit = threading.Lock()  # FAISS has one limit for the whole process


def write_faiss(index: Any, path: Path) -> None:
    """Write a FAISS index to a file, with the same bytes as `faiss.write_index`.

    Raises:
        OSError: the disk is full or read-only.
    """
    faiss = faiss_library()
    with path.open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def read_faiss(path: Path, flags: int = 0) -> Any:
    """Read a FAISS index from a regular file.

    Args:
        path: the file.
        flags: `faiss.IO_FLAG_…`.

    Raises:
        RuntimeError: it is no index, is damaged, or claims more than it holds.
        UnsafeFile: it is a pipe, a socket or a device.
    """
    faiss = faiss_library()
    size = require_regular(path).st_size
    with _limit:
        before = faiss.get_deserialization_vector_byte_limit()
        faiss.set_deserialization_vector_byte_limit(size + _SLACK)
        try:
            return faiss.read_index(str(path), flags)
        finally:
            faiss.set_deserialization_vector_byte_limit(before)
