"""Progress of long work, reported to whoever cares.

Library code says what it is doing with `track` or `task`, and where it helps what else is so with
`remark`. Nothing is shown unless a reporter is in place: the command line installs one that draws
bars on a terminal, a notebook or server may install its own with `reporting`. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task, TaskID

T = TypeVar("T")
Advance = Callable[[int], None]


class Reporter(Protocol):
    """Shows progress; one `open` per piece of work, which may nest.

    A reporter may also have a method `remark(text)`, which gets what `remark` is called with.
    """

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

        with task("mining images", total=len(images)) as advance:
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


def remark(text: str) -> None:
    """Say what else is so about the innermost piece of work, in place of the last remark.

    Reporters without a method `remark` leave it out.
    """
    say = getattr(_reporter.get(), "remark", None)
    if say is not None:
        say(text)


@contextmanager
def reporting(reporter: Reporter) -> Iterator[None]:
    """Send progress to `reporter` inside the context."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


def quiet() -> AbstractContextManager[None]:
    """Report nothing inside: for many short pieces of work within one that is reported."""
    return reporting(_Silent())


class RichReporter:
    """Bars on a terminal. Finished outer bars stay, inner ones make room."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._bars: list[TaskID] = []

    @contextmanager
    def open(self, description: str, total: int | None) -> Iterator[Advance]:
        """Draw a bar, or a spinner when `total` is None."""
        outermost = self._progress is None
        progress = self._progress = self._progress or self._new()
        if outermost:
            progress.start()
        bar = progress.add_task(description, total=total, remark="")
        self._bars.append(bar)
        try:
            yield lambda steps: progress.advance(bar, steps)
        finally:
            self._bars.remove(bar)
            if outermost:
                progress.stop()
                self._progress = None
            else:
                progress.remove_task(bar)

    def remark(self, text: str) -> None:
        """Put a few words behind the innermost bar."""
        if self._progress is not None:
            self._progress.update(self._bars[-1], remark=text)

    def _new(self) -> Progress:
        from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
        from rich.text import Text

        class Told(ProgressColumn):
            max_refresh = 0.25

            def render(self, task: Task) -> Text:
                return Text(_told(task), no_wrap=True, overflow="ellipsis")

        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28 if self._console.width >= _WIDE else 8),
            Told(),
            console=self._console,
            speed_estimate_period=120,
        )


_WIDE = 110
"""Columns of a terminal from which on there is room for long bars."""


def _told(task: Task) -> str:
    """How much is done, how fast, how long the rest will take, and what was remarked."""
    parts = [f"{task.completed:.0f}{'' if task.total is None else f'/{task.total:.0f}'}"]
    if (speed := task.finished_speed or task.speed) and task.total is not None:
        parts.append(f"{speed:.3g}/s")
    if task.finished:
        parts.append(f"in {_clock(task.finished_time)}")
    elif task.time_remaining is not None:
        parts.append(f"{_clock(task.time_remaining)} left")
    else:
        parts.append(_clock(task.elapsed))
    return ", ".join(filter(None, [*parts, task.fields["remark"]]))


def _clock(seconds: float | None) -> str:
    return str(timedelta(seconds=int(seconds or 0))).removeprefix("0:")
