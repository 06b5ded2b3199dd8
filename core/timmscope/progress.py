"""Progress of long work, reported to whoever cares.

Library code says what it is doing with `track` or `task`. Nothing is shown unless a reporter is in
place: the command line installs one that draws bars on a terminal, a notebook or server may install
its own with `reporting`. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

T = TypeVar("T")
Advance = Callable[[int], None]


class Reporter(Protocol):
    """Shows progress; one `open` per piece of work, which may nest."""

    def open(self, description: str, total: int | None) -> AbstractContextManager[Advance]:
        """Begin a piece of work of `total` steps; the context gives a function to count steps."""
        ...


class _Silent:
    @contextmanager
    def open(self, description: str, total: int | None) -> Iterator[Advance]:
        yield lambda steps: None


_reporter: ContextVar[Reporter] = ContextVar("timmscope_reporter", default=_Silent())  # noqa: B039


def task(description: str, total: int | None = None) -> AbstractContextManager[Advance]:
    """Report a piece of work whose steps do not come from an iterable.

    ::

        with task("mining", total=len(images)) as advance:
            for batch in batches:
                advance(len(batch))
    """
    return _reporter.get().open(description, total)


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield from `iterable` and report every item as one step.

    Args:
        iterable: what to go through.
        description: a word or two, as in ``"optimising"``.
        total: number of items, where `iterable` does not know its length.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with task(description, total) as advance:
        for item in iterable:
            yield item
            advance(1)


@contextmanager
def reporting(reporter: Reporter) -> Iterator[None]:
    """Send progress to `reporter` inside the context."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


class RichReporter:
    """Bars on a terminal. Finished outer bars stay, inner ones make room."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None

    @contextmanager
    def open(self, description: str, total: int | None) -> Iterator[Advance]:
        """Draw a bar, or a spinner when `total` is None."""
        outermost = self._progress is None
        progress = self._progress = self._progress or self._new()
        if outermost:
            progress.start()
        bar = progress.add_task(description, total=total)
        try:
            yield lambda steps: progress.advance(bar, steps)
        finally:
            if outermost:
                progress.stop()
                self._progress = None
            else:
                progress.remove_task(bar)

    def _new(self) -> Progress:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        return Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
            console=self._console,
        )
