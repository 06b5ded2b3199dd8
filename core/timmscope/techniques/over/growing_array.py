"""`GrowingArray` writes the rows of a .npy file in chunks, so that memory does not grow with it."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from timmscope.durable import sync
from timmscope.store.files import disk_error

_AT_ONCE = 1 << 24


class GrowingArray:
    """A float32 array of a known shape whose rows are written in order.

    A row that a killed process has begun is written again when the run resumes, so the file needs
    no journal of its own. A row without values is NaN, which no reader takes for an image.

    Args:
        file: the file.
        shape: shape of the whole array; its first axis is the images.
    """

    def __init__(self, file: Path, shape: tuple[int, ...]) -> None:
        self._file, self._shape = file, shape
        self._row_bytes = 4 * math.prod(shape[1:])
        header = io.BytesIO()
        description = {"descr": "<f4", "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(header, description)
        self._header = header.getvalue()

    def write(self, start: int, rows: np.ndarray) -> None:
        """Write rows, `(n, …)` float32, from a number on; they are on disk when this returns.

        Raises:
            StoreError: the disk is full or read-only.
        """
        try:
            new = not self._file.exists()
            with self._file.open("wb" if new else "rb+") as file:
                file.write(self._header)
                self._fill(file, start)
                file.seek(len(self._header) + start * self._row_bytes)
                file.write(np.ascontiguousarray(rows, "<f4").data)
                file.flush()
                os.fsync(file.fileno())
            if new:
                sync(self._file.parent)
        except OSError as error:
            raise disk_error(error, self._file) from error

    def complete(self) -> None:
        """Fill the rows after the last one that was written with NaN.

        Raises:
            StoreError: the disk is full or read-only.
        """
        self.write(self._shape[0], np.empty((0, *self._shape[1:]), "<f4"))

    def holds(self, rows: int) -> bool:
        """Return whether the file is there and long enough for that many rows."""
        try:
            return self._file.stat().st_size >= len(self._header) + rows * self._row_bytes
        except OSError:
            return False

    def _fill(self, file: BinaryIO, start: int) -> None:
        """Fill the rows before the first one with NaN; images without a result came first."""
        here = file.seek(0, os.SEEK_END)
        end = len(self._header) + start * self._row_bytes
        while here < end:
            count = min(_AT_ONCE, end - here) // 4
            here += file.write(np.full(count, np.nan, "<f4").data)
