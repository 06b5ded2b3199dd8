"""Reports the progress of long work to a reporter, such as the progress bars of the command line.

Library code reports its progress with `track` or `task`, and may add a text with `remark`. Nothing
is shown unless a reporter is set: the command line sets one that draws bars on a terminal; a
notebook or server can set its own with `reporting`. This module does not import torch.
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
    """Shows progress; `open` is called once for each task, and tasks may be nested.

    A reporter may also have a method `remark(text)`, which gets the text of `remark`.
    """

    def open(self, description: str, total: int | None) -> AbstractContextManager[Advance]:
        """Begin a task of `total` steps, None if unknown; gives a function that advances it."""
        ...


class _Silent:
    @contextmanager
    def open(self, description: str, total: int | None) -> Iterator[Advance]:
        yield lambda steps: None


_reporter: ContextVar[Reporter] = ContextVar("timmscope_reporter", default=_Silent())  # noqa: B039


def task(description: str, total: int | None = None) -> AbstractContextManager[Advance]:
    """Report a task whose steps do not come from an iterable.

    The context gives a function that advances the task by a number of steps::

        with task("mining images", total=len(images)) as advance:
            for batch in batches:
                advance(len(batch))

    Args:
        description: a few words, as in ``"mining images"``.
        total: number of steps, if it is known.
    """
    return _reporter.get().open(description, total)


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield from `iterable` and report every item as one step.

    Args:
        iterable: the items.
        description: a few words, as in ``"optimising"``.
        total: number of items; by default the length of `iterable`, if it has one.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with task(description, total) as advance:
        for item in iterable:
            yield item
            advance(1)


def remark(text: str) -> None:
    """Show a text beside the innermost task; it replaces the task's previous one.

    Reporters without a method `remark` ignore it.
    """
    show = getattr(_reporter.get(), "remark", None)
    if show is not None:
        show(text)


@contextmanager
def reporting(reporter: Reporter) -> Iterator[None]:
    """Send progress to `reporter` inside the context."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


def quiet() -> AbstractContextManager[None]:
    """Report nothing inside the context, for many short tasks within one that is reported."""
    return reporting(_Silent())


class RichReporter:
    """Draws progress bars on a terminal; bars of nested tasks disappear when they finish."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._bars: list[TaskID] = []

    @contextmanager
    def open(self, description: str, total: int | None) -> Iterator[Advance]:
        """Draw a bar, or a moving one if `total` is None."""
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
        """Show a text behind the innermost bar."""
        if self._progress is not None:
            self._progress.update(self._bars[-1], remark=text)

    def _new(self) -> Progress:
        from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
        from rich.text import Text

        class StatusColumn(ProgressColumn):
            max_refresh = 0.25

            def render(self, task: Task) -> Text:
                return Text(_status(task), no_wrap=True, overflow="ellipsis")

        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28 if self._console.width >= _WIDE else 8),
            StatusColumn(),
            console=self._console,
            speed_estimate_period=120,
        )


_WIDE = 110
"""Width of a terminal, in columns, from which bars are long."""


def _status(task: Task) -> str:
    """Steps done, speed, remaining or elapsed time, and the remark."""
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
