"""Records collectors in files by their registered ids, and creates them again from these ids.

A file never names code: an id is looked up among the plugins' contributions, and the class is
checked before it is called. A collector that no plugin registers is recorded by its name only, and
the reader of its state must pass the class.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from timmscope_registry import PluginError, StoreError, get_registry
from timmscope_registry.contributions import entry_of, missing_plugin, subclass
from timmscope_registry.plugin_faults import described

from .base import Collector

TOP_K_ID = "timmscope:top-k"
STATISTICS_ID = "timmscope:statistics"


def registered_id(collector: Collector) -> str | None:
    """Return the registered id of a collector, as in ``timmscope:pooled``; None if it has none."""
    entry = entry_of(type(collector), get_registry().collectors())
    return None if entry is None else entry.id


def recorded_collector(
    name: str,
    id_: str | None,
    parameters: dict[str, Any],
    *,
    where: str,
    given: Iterable[Collector | type[Collector]] = (),
) -> Collector:
    """Create an empty collector with the parameters that a file records.

    Args:
        name: name of the collector in the file.
        id_: its registered id; None if the file has none.
        parameters: the constructor's arguments, by keyword.
        where: the file, for messages.
        given: the caller's collectors or their classes; one called `name` is used instead of `id_`.

    Raises:
        StoreError: the collector is neither registered nor given, does not accept the parameters,
            or has another name.
        PluginError: its plugin is not installed, cannot be loaded, or has no collector of that id.
    """
    match = next((each for each in given if each.name == name), None)
    if match is not None:
        kind, label = match if isinstance(match, type) else type(match), f"collector {name!r}"
    elif id_ is None:
        raise StoreError(
            f"{where} has a collector {name!r} that no plugin registers: pass its class or an "
            "instance, as in store.collector(layer, MyCollector) or collectors=[MyCollector()]"
        )
    else:
        entries = get_registry().collectors()
        entry = next((each for each in entries if each.id == id_), None)
        if entry is None:
            raise PluginError(f"{where}: {missing_plugin('collector', id_)}")
        kind, label = subclass(entry, Collector), described(entry)  # type: ignore[type-abstract]
    try:
        collector = kind(**parameters)
    except (TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise StoreError(
            f"{where}: the {label} does not take the parameters {parameters} ({reason}); restore "
            "the manifest from a copy, or mine again"
        ) from error
    if collector.name != name:
        raise StoreError(f"{where} calls {collector.name!r} {name!r}; restore it from a copy")
    return collector
