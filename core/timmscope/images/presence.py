"""Checks whether a source's files can still be reached, and reports progress of slow listings.

A disk that is unplugged during a pass makes every image fail with "no such file". One missing image
is a fact about the data set and is recorded; if all are missing, the pass must stop instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from time import monotonic
from typing import TypeVar

from timmscope.progress import Advance, task

_SAMPLES = 16
_PATIENCE_S = 0.5
_INTERVAL_S = 0.1

T = TypeVar("T")


class Presence:
    """Up to 16 files of a source, spread evenly over it, that existed when it was opened.

    Args:
        count: number of files.
        file: gives a file's path by its number.
    """

    def __init__(self, count: int, file: Callable[[int], str]) -> None:
        stride = max(1, -(-count // _SAMPLES))
        self._files = [name for name in map(file, range(0, count, stride)) if not _fault(name)]

    def unreachable(self) -> str:
        """Say why none of the files can be reached any more; empty while one can."""
        reason = ""
        for name in self._files:
            reason = _fault(name)
            if not reason:
                return ""
        return reason


def _fault(name: str) -> str:
    try:
        os.stat(name)  # noqa: PTH116
    except OSError as error:
        return error.strerror or str(error)
    return ""


@contextmanager
def progress_if_slow(description: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """Report progress only after half a second, so that no bar flickers for quick work.

    The context gives a function to call at every step.
    """
    steps, shown, due = 0, 0, monotonic() + _PATIENCE_S
    advance: Advance | None = None

    def step() -> None:
        nonlocal steps, shown, due, advance
        steps += 1
        if (now := monotonic()) < due:
            return
        if advance is None:
            advance = stack.enter_context(task(description, total))
        advance(steps - shown)
        shown, due = steps, now + _INTERVAL_S

    with ExitStack() as stack:
        yield step
        if advance is not None:
            advance(steps - shown)


def track_if_slow(items: Sequence[T], description: str) -> Iterator[T]:
    """Yield from a sequence and report progress if that takes longer than half a second."""
    with progress_if_slow(description, len(items)) as step:
        for item in items:
            yield item
            step()
