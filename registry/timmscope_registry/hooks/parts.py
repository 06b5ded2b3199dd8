"""Finds the tensors inside an output that is a tuple, a list or a dictionary, by their place.

A place is written as Python writes it, without quotes: ``[1]``, ``[0][2]``, ``[boxes]``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor


def parts_of(output: object) -> dict[str, Tensor]:
    """Return the tensors inside nested tuples, lists and dictionaries, by place."""
    return {place: part for place, part in _walk(output, "") if isinstance(part, Tensor)}


def described(returned: str, name: str, places: Iterable[str]) -> str:
    """Say which tensors a hook point returns: ``a tuple of out[0], out[1]``."""
    names = [f"{name}{place}" for place in places]
    shown = ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
    return f"a {returned} of {shown}" if names else f"a {returned}, not one tensor"


def part_at(output: object, place: str) -> object:
    """Return what lies at a place; None if there is nothing. The empty place is the output."""
    return next((part for found, part in _walk(output, "") if found == place), None)


def with_part(output: Any, place: str, new: Tensor) -> Any:
    """Return the output with another tensor at a place; no container is changed in place."""
    if not place:
        return new
    for key, part in _items(output):
        step = f"[{key}]"
        if place.startswith(step):
            return _with_item(output, key, with_part(part, place.removeprefix(step), new))
    return output


def _walk(output: object, place: str) -> Iterator[tuple[str, object]]:
    yield place, output
    for key, part in _items(output):
        yield from _walk(part, f"{place}[{key}]")


def _items(output: object) -> Iterator[tuple[Any, object]]:
    if isinstance(output, Mapping):
        yield from output.items()
    elif isinstance(output, list | tuple):
        yield from enumerate(output)


def _with_item(output: Any, key: Any, new: object) -> Any:
    if isinstance(output, tuple):
        values = [*output[:key], new, *output[key + 1 :]]
        return type(output)(*values) if hasattr(output, "_fields") else tuple(values)
    changed = copy.copy(output)
    changed[key] = new
    return changed
