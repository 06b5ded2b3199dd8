"""A lock of a module and its parts, so that forwards never overlap whatever wraps the module.

A forward changes the mode of the module while it runs. Two wrappers of one module, or wrappers of a
model and of its backbone, must therefore not run at the same time. Models without common parts run
in parallel.
"""

from __future__ import annotations

import itertools
import threading
from types import TracebackType
from weakref import WeakKeyDictionary

from torch import nn

_Numbered = tuple[int, threading.RLock]

_locks: WeakKeyDictionary[nn.Module, _Numbered] = WeakKeyDictionary()
_numbers = itertools.count()
_guard = threading.Lock()


class ModuleLock:
    """Reentrant lock of a module: it excludes all other locks of modules with a common part.

    Args:
        module: the module; parts added later are not covered.
    """

    def __init__(self, module: nn.Module) -> None:
        with _guard:
            new = (next(_numbers), threading.RLock())
            numbered = {_locks.setdefault(part, new) for part in module.modules()}
        # Always in the same order, so that two threads never wait for each other.
        self._locks = [lock for _, lock in sorted(numbered, key=lambda each: each[0])]

    def __enter__(self) -> None:
        for lock in self._locks:
            lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for lock in reversed(self._locks):
            lock.release()
