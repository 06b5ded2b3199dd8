"""Whether a source's files are still there, and a sign of life while there are many to look at.

A disk that goes away during a pass makes every image fail with "no such file". One missing image is
a fact about the data set; all of them missing is not, and must not be recorded as such.
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
    """A few files of a source, spread evenly over it, that were there when it was opened."""

    def __init__(self, count: int, file: Callable[[int], str]) -> None:
        stride = max(1, -(-count // _SAMPLES))
        self._files = [name for name in map(file, range(0, count, stride)) if not _missing(name)]

    def lost(self) -> str:
        """Say why none of them can be reached any more, or nothing while one can."""
        reason = ""
        for name in self._files:
            reason = _missing(name)
            if not reason:
                return ""
        return reason


def _missing(name: str) -> str:
    try:
        os.stat(name)  # noqa: PTH116
    except OSError as error:
        return error.strerror or str(error)
    return ""


@contextmanager
def unless_quick(description: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """Report progress once it has taken half a second: a bar for a blink would only flicker.

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


def tracked(items: Sequence[T], description: str) -> Iterator[T]:
    """Yield from a sequence, with progress if it takes long."""
    with unless_quick(description, len(items)) as step:
        for item in items:
            yield item
            step()
