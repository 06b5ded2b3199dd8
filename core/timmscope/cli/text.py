"""Turns docstrings into help on a terminal.

Help is plain text, because parsing markup would take longer than the rest of ``timmscope --help``.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable
from typing import ParamSpec

from timmscope_registry.plugin_faults import visible

P = ParamSpec("P")

_SECTION = re.compile(
    r"^(Args|Attributes|Inherited parameters|Paper|Raises|Returns):\n(?=[ ])", re.MULTILINE
)


def plain_help(function: Callable[P, None]) -> Callable[P, None]:
    """Decorate a command: turn its docstring into plain text."""
    function.__doc__ = plain_text(inspect.cleandoc(function.__doc__ or ""))
    return function


def sections(docstring: str) -> dict[str, str]:
    """Return a docstring's sections by name, such as `Raises`; `""` is the text before them."""
    before, *parts = _SECTION.split(docstring)
    bodies = (textwrap.dedent(body).strip() for body in parts[1::2])
    return {"": before.strip(), **dict(zip(parts[::2], bodies, strict=True))}


def plain_text(docstring: str) -> str:
    """Return a docstring without back-quotes, with each paragraph on one line."""
    lines: list[str] = []
    for line in docstring.replace("`", "").splitlines():
        before = lines[-1] if lines else ""
        continues = before.strip() and _depth(line) == _depth(before) + 2 * _is_item(before)
        is_name = "Parameters" in lines and _depth(line) == 0
        if line.strip() and continues and not (is_name or _is_item(line)):
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(map(visible, lines))


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_item(line: str) -> bool:
    return line.lstrip().startswith(("- ", "* "))
