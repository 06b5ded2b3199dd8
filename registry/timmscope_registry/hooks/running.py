"""Knows which forwards of ours run in the current thread.

torch calls a module's hooks in every thread that runs the module. Ours act only in the thread whose
forward registered them, and not in forwards that an edit or a reader starts inside it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Running(threading.local):
    forwards: tuple[object, ...] = ()
    tracing: bool = False


_running = _Running()


def is_running(forward: object) -> bool:
    """Whether this thread is inside that forward."""
    return any(each is forward for each in _running.forwards)


@contextmanager
def running(forward: object) -> Iterator[None]:
    """Let the hooks of a forward act in this thread, inside the context."""
    outer = _running.forwards
    _running.forwards = (*outer, forward)
    try:
        yield
    finally:
        _running.forwards = outer


def is_tracing() -> bool:
    """Whether this thread runs a forward that only lists the modules it calls."""
    return _running.tracing


@contextmanager
def tracing() -> Iterator[None]:
    """Mark the forwards of this thread inside the context as ones that only list modules."""
    outer, _running.tracing = _running.tracing, True
    try:
        yield
    finally:
        _running.tracing = outer


@contextmanager
def paused() -> Iterator[None]:
    """Let no hook act in this thread inside the context, for a forward that other code starts."""
    outer, _running.forwards = _running.forwards, ()
    try:
        yield
    finally:
        _running.forwards = outer
