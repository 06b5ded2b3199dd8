"""Makes the n-th system call that changes files fail, or kills the process there.

Calls are counted in Python: files that are created or opened for writing, what is written to them
(HDF5 and FAISS write through such a file too), and `fsync`, `replace`, `link`, `unlink`, `mkdir` …
"""

from __future__ import annotations

import errno
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

CALLS = (
    "fsync", "replace", "rename", "link", "unlink", "rmdir", "mkdir", "ftruncate", "truncate",
)  # fmt: skip

_running: list[Faults] = []


@dataclass
class Faults:
    """Counts calls; the one with the number `at` fails with `number`, or kills the process.

    Attributes:
        at: number of the call, from 1; 0 only counts. A write does half of its work first.
        number: the error; None kills.
        count: calls so far.
        names: their names.
    """

    at: int = 0
    number: int | None = errno.EIO
    count: int = 0
    names: list[str] = field(default_factory=list)
    paused: bool = False

    @property
    def fails_next(self) -> bool:
        return self.count + 1 == self.at and not self.paused

    def call(self, name: str) -> None:
        if self.paused:
            return
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
        if self._faults.fails_next:
            half = data if isinstance(data, str) else memoryview(data).cast("B")
            self._file.write(half[: len(half) // 2])
            self._file.flush()
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
    plain_open, plain_os_open = io.open, os.open

    def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        writes = any(letter in mode for letter in "wax+")
        if writes and not isinstance(file, int):
            found.call("open")
        made = plain_open(file, mode, *args, **options)
        return _File(made, found) if writes else made

    def os_opened(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & (os.O_CREAT | os.O_TRUNC):
            found.call("open")
        return plain_os_open(path, flags, *args, **options)

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            found.call(name)
            return call(*args, **options)

        return run

    patches = {name: wrapped(name, getattr(os, name)) for name in CALLS}
    with ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(os, open=os_opened, **patches))
        stack.enter_context(mock.patch.object(io, "open", opened))
        stack.enter_context(mock.patch("builtins.open", opened))
        _running.append(found)
        try:
            yield found
        finally:
            _running.remove(found)


@contextmanager
def uncounted() -> Iterator[None]:
    """Count no calls inside the block."""
    for found in _running:
        found.paused = True
    try:
        yield
    finally:
        for found in _running:
            found.paused = False
