"""Prints tables and sentences for people, JSON for programs, and messages on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TextIO

from timmscope_registry import ParameterError
from timmscope_registry.loading import stdout_to_stderr
from timmscope_registry.plugin_faults import visible

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure
    from rich.console import Console, RenderableType

PIPED_WIDTH = 160
"""Width in characters of output that does not go to a terminal; ``COLUMNS`` overrides it."""
GAP = 3
"""Number of spaces between columns."""
MOST_SIDE_BY_SIDE = 5
"""Largest number of rows at which a table that is too wide is transposed."""
_DEL_AND_C1 = re.compile(r"[\x7f-\x9f]")
"""Control characters that JSON allows unescaped, but that a terminal would obey."""
_MIN_WRAPPED_WIDTH = 5
"""Smallest width of a column that is wrapped, in characters."""

_real_stdout: ContextVar[TextIO | None] = ContextVar("timmscope_stdout", default=None)
"""Stdout for the command's own output while `plugin_prints_to_stderr` redirects `sys.stdout`."""


def _stdout() -> TextIO:
    return _real_stdout.get() or sys.stdout


@contextmanager
def plugin_prints_to_stderr() -> Iterator[None]:
    """Send what plugins print to stderr, so that stdout holds only the command's own output."""
    token = _real_stdout.set(_stdout())
    try:
        with stdout_to_stderr():
            yield
    finally:
        _real_stdout.reset(token)


def console(*, stderr: bool = False, piped_width: int | None = PIPED_WIDTH) -> Console:
    """Return a console on the current stdout or stderr.

    Args:
        stderr: use stderr instead of stdout.
        piped_width: width if the output is not a terminal; None for rich's default of 80.
    """
    from rich.console import Console

    class PipedConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # `main` handles it; rich would exit and redirect sys.stdout

    stream = sys.stderr if stderr else _stdout()
    width = None if stream.isatty() or "COLUMNS" in os.environ else piped_width
    return PipedConsole(file=stream, width=width, highlight=False, soft_wrap=False)


def say(text: str = "") -> None:
    """Print text without wrapping it, so that paths and commands can be copied."""
    lines = [visible(line) for line in text.split("\n")]
    console().print("\n".join(lines), markup=False, soft_wrap=True)


def print_stderr(text: str) -> None:
    """Print ``timmscope: …`` on stderr as exactly one line."""
    print("timmscope:", visible(" ".join(text.split())), file=sys.stderr)


def print_json(value: object) -> None:
    """Print a value as JSON."""
    stdout = _stdout()
    ascii_only = not (stdout.encoding or "ascii").lower().startswith("utf")
    text = json.dumps(value, indent=2, ensure_ascii=ascii_only, default=str)
    print(_DEL_AND_C1.sub(lambda found: f"\\u{ord(found[0]):04x}", text), file=stdout)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Iterable[str] = (),
    keep: Iterable[str] = (),
    styles: Mapping[str, str] | None = None,
    title: str | None = None,
) -> None:
    """Print a table of rows under headings.

    Args:
        columns: headings.
        rows: the cells of each row: text, numbers, or rich renderables.
        right: columns that are aligned to the right.
        keep: columns that are never wrapped; if the terminal is too narrow, lines exceed its width.
        styles: rich styles by column.
        title: a line above the table.
    """
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    grid = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        header_style="bold",
        title=Text(visible(title)) if title else None,
        title_justify="left",
        title_style="bold",
    )
    right_aligned, never_wrapped = set(right), set(keep)
    for column in columns:
        grid.add_column(
            Text(visible(column)),
            justify="right" if column in right_aligned else "left",
            no_wrap=column in never_wrapped,
            overflow="fold",
            style=(styles or {}).get(column),
        )
    cells = [[_cell(value) for value in row] for row in rows]
    for line in cells:
        grid.add_row(*line)
    target, least_width = console(), GAP * (len(columns) - 1)
    for place, column in enumerate(columns):
        texts = [column, *(str(line[place]) for line in cells)]
        width = max(cell_len(part) for text in texts for part in text.split("\n"))
        least_width += width if column in never_wrapped else min(width, _MIN_WRAPPED_WIDTH)
    target.width = max(target.width, least_width)
    target.print(grid)


def records(rows: Sequence[Mapping[str, object]]) -> None:
    """Print mappings as a table whose headings are their keys.

    The table is transposed if it is too wide and has at most `MOST_SIDE_BY_SIDE` rows.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    heads = [key.replace("_", " ") for key in keys]
    numbers = [all(isinstance(row.get(key), int | float | None) for row in rows) for key in keys]
    cells = [[str(_cell(row.get(key))) for row in rows] for key in keys]
    widths = [max(map(len, [head, *column])) for head, column in zip(heads, cells, strict=True)]
    if sum(widths) + GAP * len(widths) > console().width and len(rows) <= MOST_SIDE_BY_SIDE:
        table(
            [heads[0], *cells[0]],
            [[head, *column] for head, column in zip(heads[1:], cells[1:], strict=True)],
        )
        return
    table(
        heads,
        [[row.get(key) for key in keys] for row in rows],
        right=[head for head, is_number in zip(heads, numbers, strict=True) if is_number],
    )


def slug(text: str) -> str:
    """Turn a text into part of a file name, without spaces and slashes."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:60] or "result"


def write_figure(figure: Figure, file: Path) -> None:
    """Write a figure in the format of its file name, by default PNG, and create missing folders.

    Raises:
        ParameterError: matplotlib does not write this format.
    """
    kind = file.suffix.lstrip(".").lower() or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise ParameterError(f"{file}: figures are not written as .{kind}; end the name in .png")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150, format=kind)


def _cell(value: object) -> RenderableType:
    """Return what a table shows for a value."""
    from rich.text import Text

    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list | tuple):
        return Text(", ".join(str(_cell(item)) for item in value))
    if isinstance(value, Text):
        return value
    return Text(visible(str(value)))
