"""Docstrings as help on a terminal.

Help is plain text: markup would have to be parsed, which takes longer than all else that
``timmscope --help`` does.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")

_SECTION = re.compile(
    r"^(Args|Attributes|Inherited parameters|Paper|Raises|Returns):\n(?=[ ])", re.MULTILINE
)


def plain_help(function: Callable[P, None]) -> Callable[P, None]:
    """Decorate a command so that its docstring reads well as help."""
    function.__doc__ = plain_text(inspect.cleandoc(function.__doc__ or ""))
    return function


def sections(docstring: str) -> dict[str, str]:
    """The sections of a docstring by name, such as `Raises`; `""` is the text before the first."""
    before, *parts = _SECTION.split(docstring)
    bodies = (textwrap.dedent(body).strip() for body in parts[1::2])
    return {"": before.strip(), **dict(zip(parts[::2], bodies, strict=True))}


def plain_text(docstring: str) -> str:
    """A docstring without back-quotes, its paragraphs on one line each, to be wrapped anew."""
    lines: list[str] = []
    for line in docstring.replace("`", "").splitlines():
        before = lines[-1] if lines else ""
        continues = before.strip() and _depth(line) == _depth(before) + 2 * _is_item(before)
        is_name = "Parameters" in lines and _depth(line) == 0
        if line.strip() and continues and not (is_name or _is_item(line)):
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(lines)


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_item(line: str) -> bool:
    return line.lstrip().startswith(("- ", "* "))
