"""Makes forged JSON objects: each value, in turn, is replaced by odd ones or left out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 10**18, 10**30, 0.5, -1e300, "", "x", "../../etc", "a" * 3000,
    "\udcff", "timmscope:top-k", [], [0, 0], [10**10] * 4, {}, {"0": 1}, [[[]]],
)  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside an object."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*at, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*at, key))


def odd_arrays(array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield arrays of other shapes, types and values."""
    yield "no row", array[:0]
    yield "twice", np.concatenate([array, array])
    yield "more dimensions", array[None]
    yield "flat", array.reshape(-1)
    for dtype in ("i1", "f8", "c8", "S3", "?", ">f4", "u8"):
        with suppress(ValueError, TypeError):
            yield dtype, array.astype(dtype)
    if array.dtype.kind in "iuf":
        for value in (-1, 127, 10**9, np.nan, np.inf, -1e300):
            with suppress(ValueError, OverflowError), np.errstate(all="ignore"):
                yield str(value), np.full_like(array, value)
    if array.dtype.kind == "S":
        yield "bytes", np.full_like(array, b"\xff\x00\x1b")


def forged(values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what was changed, and the changed object."""
    for place in list(places(values)):
        for odd in (*ODD, "left out", "twice"):
            changed = copy.deepcopy(values)
            parent: Any = changed
            for key in place[:-1]:
                parent = parent[key]
            if odd == "left out":
                del parent[place[-1]]
            elif odd == "twice":
                if not isinstance(parent, list):
                    continue
                parent.append(parent[place[-1]])
            else:
                parent[place[-1]] = odd
            yield f"{'.'.join(map(str, place))} = {str(odd)[:40]!r}", changed
