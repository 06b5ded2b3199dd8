"""Reports in one line what fails in a collector, and checks what it returns.

Rows that are not what the collector declared would be cast or broadcast in silence, and fill a
store with numbers that nobody computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter
from torch import Tensor

from timmscope.collectors import Collector, Column, RowCollector, State
from timmscope_registry import CollectorSpec, Entry, PluginError, TimmscopeError, get_registry
from timmscope_registry.contributions import culprit, subclass
from timmscope_registry.out_of_memory import is_out_of_memory
from timmscope_registry.plugin_faults import brief, fault, one_line

if TYPE_CHECKING:
    from timmscope_registry.hooks import Layer


@contextmanager
def collector_errors(
    collector: Collector | RowCollector, layer: str, start: int, stop: int
) -> Iterator[None]:
    """Turn what a collector raises inside into one line; errors that are one line pass.

    Args:
        collector: the one that is at work.
        layer: the layer whose rows it sees.
        start: id of the first image.
        stop: id after the last.

    Raises:
        PluginError: names the collector, the layer and the images.
    """
    try:
        yield
    except TimmscopeError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        did = f"failed in layer {layer}, images {start} to {stop - 1} ({one_line(error)})"
        remedy = "fix it and start again: finished shards are kept"
        raise PluginError(fault(_blamed(collector), did, advice=remedy)) from error


def _blamed(collector: Collector | RowCollector) -> Entry[CollectorSpec] | str:
    """Whom to name: someone else's contribution, or the collector's own name."""
    name = f"collector {collector.name}"
    return culprit(type(collector), get_registry().collectors(), name)


def instantiate(entry: Entry[CollectorSpec]) -> Collector:
    """What a plugin offers, with its default parameters.

    Raises:
        PluginError: it is no collector, or cannot be made and recorded.
    """
    kind = subclass(entry, Collector)  # type: ignore[type-abstract]
    try:
        collector = kind()
        TypeAdapter(dict[str, Any]).dump_json(collector.parameters())
        name, needs = collector.name, collector.needs
    except Exception as error:
        raise PluginError(fault(entry, f"cannot be made: {one_line(error)}")) from error
    if not (isinstance(name, str) and name):
        raise PluginError(fault(entry, f"has the name {name!r}", expected="text"))
    if not (isinstance(needs, tuple) and all(isinstance(kind, str) for kind in needs)):
        raise PluginError(fault(entry, f"needs {needs!r}", expected="a tuple of text"))
    return collector


def declared_columns(collector: RowCollector, layer: Layer) -> dict[str, Column]:
    """Return a collector's columns if a shard can hold them.

    Raises:
        PluginError: they cannot be made, or one is no column; names the collector and the layer.
    """
    try:
        columns: Any = collector.columns(layer)
        if not isinstance(columns, Mapping):
            raise TypeError(f"returned {brief(columns)}; expected a dict of Column")
        for kind, column in columns.items():
            _check_name(kind)
            if not isinstance(column, Column):
                raise TypeError(f"{kind!r} is {brief(column)}; expected a Column")
            dtype = np.dtype(column.dtype)
            if dtype.kind not in "biufc":
                raise TypeError(f"{kind!r} has the type {column.dtype}; expected numbers")
            if any(not isinstance(size, int | np.integer) or size < 0 for size in column.shape):
                raise ValueError(f"{kind!r} has the shape {column.shape}")
            if dtype.kind in "biu" and not _fits(column.fill, dtype):
                raise ValueError(f"{kind!r} of type {dtype} cannot hold its fill {column.fill}")
    except TimmscopeError:
        raise
    except Exception as error:
        did = f"has no usable columns for layer {layer.name} ({one_line(error)})"
        remedy = "fix it and start again"
        raise PluginError(fault(_blamed(collector), did, advice=remedy)) from error
    return dict(columns)


def declared_rows(
    rows: Mapping[str, Tensor], columns: Mapping[str, Column], count: int
) -> Mapping[str, Tensor]:
    """Return a collector's rows if they are what its columns say; call it in `collector_errors`.

    Args:
        rows: what `reduce` returned.
        columns: what the collector declared for the layer.
        count: number of images.
    """
    given: Any = rows
    if not isinstance(given, Mapping) or given.keys() != columns.keys():
        what = f"rows {', '.join(given) or 'none'}" if isinstance(given, dict) else brief(given)
        raise TypeError(f"returned {what}, its columns say {', '.join(columns)}")
    for kind, column in columns.items():
        found = given[kind]
        if not isinstance(found, Tensor):
            raise TypeError(f"{kind!r} is {brief(found)}; expected a tensor")
        shape, dtype = (count, *column.shape), np.dtype(column.dtype).name
        if tuple(found.shape) != shape or str(found.dtype) != f"torch.{dtype}":
            raise TypeError(
                f"returned {kind!r} as {tuple(found.shape)} {str(found.dtype)[6:]}, "
                f"its columns say {shape} {dtype}"
            )
    return rows


def storable_state(state: State) -> dict[str, np.ndarray]:
    """Return a collector's state if HDF5 can hold it; call it in `collector_errors`."""
    given: Any = state
    if not isinstance(given, Mapping):
        raise TypeError(f"its state is {brief(given)}; expected a dict of NumPy arrays")
    for name, value in given.items():
        _check_name(name)
        if not isinstance(value, np.ndarray | np.generic) or value.dtype.kind not in "biufcS":
            raise TypeError(f"{name!r} of its state is {brief(value)}; expected numbers in NumPy")
    return {name: np.asarray(value) for name, value in given.items()}


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name.strip(".") or "/" in name:
        raise ValueError(f"{name!r} is no name; expected text without a slash")


def _fits(value: float, dtype: np.dtype[Any]) -> bool:
    if dtype.kind == "b":
        return value in (0, 1)
    limits = np.iinfo(dtype)
    return float(value).is_integer() and limits.min <= value <= limits.max
