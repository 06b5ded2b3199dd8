"""Makes the n-th system call that changes files fail, or kills the process there.

Calls are counted in Python: what is written to files that were opened for writing (HDF5 writes
through such a file too), and `fsync`, `replace`, `link`, `unlink`, `rmdir` and `mkdir`.
"""

from __future__ import annotations

import errno
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

CALLS = ("fsync", "replace", "rename", "link", "unlink", "rmdir", "mkdir", "ftruncate")


@dataclass
class Faults:
    """Counts calls; the one with the number `at` fails with `number`, or kills the process.

    Attributes:
        at: number of the call, from 1; 0 only counts.
        number: the error; None kills.
        count: calls so far.
        names: their names.
    """

    at: int = 0
    number: int | None = errno.EIO
    count: int = 0
    names: list[str] = field(default_factory=list)

    def call(self, name: str) -> None:
        self.count += 1
        self.names.append(name)
        if self.count == self.at:
            if self.number is None:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(self.number, os.strerror(self.number), name)


class _File:
    """A file that is open for writing."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self._file = file
        self._faults = faults

    def write(self, data: Any) -> Any:
        self._faults.call("write")
        return self._file.write(data)

    def truncate(self, *size: int) -> Any:
        self._faults.call("truncate")
        return self._file.truncate(*size)

    def __enter__(self) -> _File:
        self._file.__enter__()
        return self

    def __exit__(self, *exception: Any) -> Any:
        return self._file.__exit__(*exception)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def faults(at: int = 0, number: int | None = errno.EIO) -> Iterator[Faults]:
    """Count calls inside the block, and let one of them fail or kill."""
    found = Faults(at, number)
    plain = io.open

    def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        made = plain(file, mode, *args, **options)
        writes = any(letter in mode for letter in "wax+") and "b" in mode
        return _File(made, found) if writes else made

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            found.call(name)
            return call(*args, **options)

        return run

    patches = {name: wrapped(name, getattr(os, name)) for name in CALLS}
    with mock.patch.multiple(os, **patches), mock.patch.object(io, "open", opened):
        yield found
