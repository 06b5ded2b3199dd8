"""Writes names of classes and layers in the text form, in quotes if they hold its signs."""

from __future__ import annotations

import json
import re

from timmscope.number_list import is_whole

_SIGNS = re.compile(r'[|*@"\[\]]|\s[+-]\s|^[+-]|[+-]$|^\s|\s$|^class:|^(p|logp|match)\(.*\)$|^$')
_PLACES = re.compile(r"(\[[\w.]+\])+$")
_PLAIN_FILE = re.compile(r"[\w./\\:~+-]+(\[\d+\])?")


def quoted(name: str) -> str:
    """Return a name in quotes, in which no sign has a meaning."""
    return json.dumps(name, ensure_ascii=False)


def target_text(target: int | str) -> str:
    """Return a class, in quotes if its name holds signs."""
    if isinstance(target, int) or is_quoted_number(target) or not _SIGNS.search(target):
        return str(target)
    return quoted(target)


def layer_text(name: str) -> str:
    """Return the name of a layer before a unit or direction, in quotes if it holds signs."""
    return quoted(name) if _SIGNS.search(_PLACES.sub("", name)) else name


def name_text(name: str) -> str:
    """Return a name that stands alone, in quotes if it would be read as something else."""
    other = name == "top" or is_whole(name)
    return quoted(name) if other or _SIGNS.search(name) else name


def file_text(name: str) -> str:
    """Return the name of a file, in quotes unless it is plain letters, digits and separators."""
    return name if not name or _PLAIN_FILE.fullmatch(name) else quoted(name)


def is_quoted_number(target: str) -> bool:
    """Return whether a class is named by digits in quotes, and is not the class of that index."""
    return (
        target.startswith('"') and target.endswith('"') and is_whole(target[1:-1].removeprefix("-"))
    )
