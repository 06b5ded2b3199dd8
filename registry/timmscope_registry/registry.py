"""The plugin registry lists what plugins contribute, resolves names and collects problems."""

from __future__ import annotations

import importlib.metadata
import os
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import pluggy

from timmscope_registry import discovery, loading
from timmscope_registry.errors import PluginError
from timmscope_registry.plugin_faults import described, fault, one_line
from timmscope_registry.plugin_record import PluginInfo, PluginRecord, Problem, named_warnings
from timmscope_registry.resolve import did_you_mean, import_string, nearest
from timmscope_registry.specs import (
    CollectorSpec,
    Family,
    ImageSourceSpec,
    IndexBackendSpec,
    ModelSourceSpec,
    Spec,
    TechniqueSpec,
)

S = TypeVar("S", bound=Spec, covariant=True)

KINDS: dict[type[object], str] = {
    TechniqueSpec: "technique",
    CollectorSpec: "collector",
    ModelSourceSpec: "model source",
    ImageSourceSpec: "image source",
    IndexBackendSpec: "index backend",
}
BLOCK_VARIABLE = "TIMMSCOPE_BLOCK"


@dataclass(frozen=True, kw_only=True)
class Entry(Generic[S]):
    """One contribution of a plugin.

    Attributes:
        id: full id, ``"distribution:name"``.
        spec: the plugin's description of it.
        plugin: the plugin that contributes it.
    """

    id: str
    spec: S
    plugin: PluginInfo

    @property
    def kind(self) -> str:
        """``"technique"``, ``"collector"``, ``"model source"`` …"""
        return KINDS[type(self.spec)]

    def load(self) -> Any:  # any object; callers check the type that they need
        """Import and return the implementation.

        Raises:
            PluginError: a requirement is not installed, or the import fails; the cause is chained.
        """
        needs = getattr(self.spec, "needs", ())
        if missing := [need for need in needs if not _is_installed(need)]:
            quoted = " ".join(f'"{need}"' for need in missing)
            remedy = f"python -m pip install {quoted}"
            raise PluginError(fault(self, f"needs {', '.join(missing)}", advice=remedy))
        try:
            with loading.stdout_to_stderr(), named_warnings(described(self)):
                return import_string(self.spec.impl)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            did = f"cannot be loaded from {self.spec.impl}: {one_line(error)}"
            raise PluginError(fault(self, did)) from error


class Registry:
    """The plugins on `sys.path`, discovered once, at first use.

    Args:
        block: plugins that must not be imported, each named by its distribution, its entry point or
            both (``"distribution:entry point"``). The environment variable ``TIMMSCOPE_BLOCK``
            (names separated by commas) blocks further plugins.
    """

    def __init__(self, *, block: Iterable[str] = ()) -> None:
        names = [*os.environ.get(BLOCK_VARIABLE, "").split(","), *block]
        self._block = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
        self._lock = threading.RLock()
        self._manager: pluggy.PluginManager
        self._records: list[PluginRecord] | None = None
        self._entries: list[Entry[Spec]] = []
        self._problems: list[Problem] = []

    # All contributions of one kind

    def techniques(self, family: Family | None = None) -> list[Entry[TechniqueSpec]]:
        """All techniques, or those of one family."""
        entries = self._entries_of(TechniqueSpec)
        return [entry for entry in entries if family in (None, entry.spec.family)]

    def collectors(self) -> list[Entry[CollectorSpec]]:
        """All collectors."""
        return self._entries_of(CollectorSpec)

    def model_sources(self) -> list[Entry[ModelSourceSpec]]:
        """All schemes of `load_model`."""
        return self._entries_of(ModelSourceSpec)

    def image_sources(self) -> list[Entry[ImageSourceSpec]]:
        """All kinds of image collection."""
        return self._entries_of(ImageSourceSpec)

    def index_backends(self) -> list[Entry[IndexBackendSpec]]:
        """All nearest-neighbour engines."""
        return self._entries_of(IndexBackendSpec)

    # One contribution by short name or full id; `PluginError` if the name is unknown or ambiguous

    def technique(self, name: str, base: str | None = None) -> Entry[TechniqueSpec]:
        """Return one technique by short name or ``"distribution:name"``.

        `base` does not filter: it only restricts what the error for an unknown name suggests.
        """
        suggest = [entry for entry in self.techniques() if base in (None, entry.spec.base)]
        return self._find(TechniqueSpec, name, suggest)

    def collector(self, name: str) -> Entry[CollectorSpec]:
        """Return one collector by short name or ``"distribution:name"``."""
        return self._find(CollectorSpec, name)

    def model_source(self, scheme: str) -> Entry[ModelSourceSpec]:
        """Return one model source by scheme or ``"distribution:scheme"``."""
        return self._find(ModelSourceSpec, scheme)

    def image_source(self, scheme: str) -> Entry[ImageSourceSpec]:
        """Return one image source by scheme or ``"distribution:scheme"``."""
        return self._find(ImageSourceSpec, scheme)

    def index_backend(self, name: str) -> Entry[IndexBackendSpec]:
        """Return one index backend by short name or ``"distribution:name"``."""
        return self._find(IndexBackendSpec, name)

    # Plugins and their problems

    def plugins(self) -> list[PluginInfo]:
        """All plugins, whether they loaded or not."""
        return [record.info() for record in self._discovered()]

    def entries(self) -> list[Entry[Spec]]:
        """All contributions of all kinds, in the order of plugins."""
        self._discovered()
        return list(self._entries)

    def problems(self) -> list[Problem]:
        """All problems, in the order of plugins."""
        self._discovered()
        return list(self._problems)

    def load_file(self, path: str | Path) -> PluginInfo:
        """Load a plugin that is a single Python file; loading it again replaces it.

        Raises:
            PluginError: there is no such file, or it cannot be loaded. In the latter case
                `problems` has the traceback, and all other plugins still work.
        """
        file = Path(path)
        if not file.is_file():
            raise PluginError(f"plugin file {file} does not exist")
        with self._lock:
            plugins = self._discovered()
            plugin = discovery.single_file(file)
            for old in [old for old in plugins if old.value == plugin.value]:
                plugins.remove(old)
                if self._manager.has_plugin(old.key):
                    self._manager.unregister(name=old.key)
            loading.load(plugin, self._manager)
            plugins.append(plugin)
            self._collect()
        if plugin.status == "failed":
            problem = plugin.problems[0]
            raise PluginError(
                f"plugin file {file} cannot be used: {problem.message}; "
                f"`timmscope --plugin {file} doctor` shows where"
            )
        return plugin.info()

    def _discovered(self) -> list[PluginRecord]:
        with self._lock:
            if self._records is None:
                try:
                    self._discover()
                except BaseException:
                    self._records = None
                    raise
            assert self._records is not None
            return self._records

    def _discover(self) -> None:
        """Load the plugins one by one; a plugin that lists others sees those loaded before it."""
        self._records, self._manager = [], loading.new_manager()
        for plugin in discovery.installed():
            if self._block and {plugin.id, plugin.name, plugin.distribution} & set(self._block):
                plugin.status = "blocked"
                plugin.problems.clear()
            elif plugin.load is not None:
                loading.load(plugin, self._manager)
            self._records.append(plugin)
            self._collect()

    def _collect(self) -> None:
        """Give every spec its full id and report names that several plugins share."""
        assert self._records is not None
        entries: dict[tuple[type[Spec], str], Entry[Spec]] = {}
        problems: list[Problem] = []
        for record in self._records:
            info = record.info()
            problems += record.problems
            for spec in record.specs:
                entry = Entry(id=f"{record.distribution}:{spec.name}", spec=spec, plugin=info)
                first = entries.setdefault((type(spec), entry.id), entry)
                if first is not entry:
                    problems.append(
                        Problem(
                            plugin=record.id,
                            stage="name",
                            message=f"the {entry.kind} {entry.id} is already offered by "
                            f"{first.plugin.id} ({first.spec.impl}); the second is ignored",
                            hint="its authors should rename one of the two",
                        )
                    )
        self._entries = list(entries.values())
        self._problems = problems + self._shared_names() + self._useless_blocks()

    def _shared_names(self) -> list[Problem]:
        by_name: dict[tuple[type[Spec], str], list[Entry[Spec]]] = {}
        for entry in self._entries:
            by_name.setdefault((type(entry.spec), entry.spec.name), []).append(entry)
        return [
            Problem(
                plugin=entries[-1].plugin.id,
                stage="name",
                message=f"the {entries[0].kind} name {name!r} is offered by "
                + " and ".join(
                    f"{entry.plugin.distribution} {entry.plugin.version}".rstrip()
                    for entry in entries
                ),
                hint=_how_to_choose(entries),
            )
            for (_, name), entries in by_name.items()
            if len(entries) > 1
        ]

    def _useless_blocks(self) -> list[Problem]:
        """Report names in `block` that no installed plugin has."""
        names = {
            name
            for record in self._records or []
            for name in (record.distribution, record.id, record.name)
            if name
        }
        return [
            Problem(
                plugin=name,
                stage="block",
                message=f"no installed plugin has this name, so nothing is blocked; "
                f"{did_you_mean(name, names)}".rstrip("; "),
                hint=f"correct --block or {BLOCK_VARIABLE}",
            )
            for name in self._block
            if name not in names
        ]

    def _entries_of(self, kind: type[S]) -> list[Entry[S]]:
        self._discovered()
        return [cast("Entry[S]", entry) for entry in self._entries if type(entry.spec) is kind]

    def _find(self, kind: type[S], name: str, suggest: list[Entry[S]] | None = None) -> Entry[S]:
        """Find an entry by full id or unique short name; the error suggests names of `suggest`."""
        entries = self._entries_of(kind)
        for entry in entries:
            if entry.id == name:
                return entry
        same = own_or_all([entry for entry in entries if entry.spec.name == name])
        if len(same) == 1:
            return same[0]
        label = KINDS[kind]
        if same:
            raise PluginError(
                f"several plugins offer the {label} {name!r}: "
                f"use {' or '.join(entry.id for entry in same)}"
            )
        suggest = entries if suggest is None else suggest
        names = [entry.spec.name for entry in suggest]
        if nearest(name, names):
            advice = did_you_mean(name, names)
        elif nearest(name, ids := [entry.id for entry in suggest]):
            advice = did_you_mean(name, ids)
        else:
            known = ", ".join(sorted(set(names)))
            advice = f"choose one of {known}" if names else "none is installed"
        broken = [r.id for r in self._records or [] if r.status in ("failed", "unsupported")]
        doctor = f"; {', '.join(broken)} did not load, see `timmscope doctor`" if broken else ""
        raise PluginError(f"unknown {label} {name!r}: {advice}{doctor}")


def own_or_all(entries: list[Entry[S]]) -> list[Entry[S]]:
    """Of sources with the same scheme only timmscope's own, so that no plugin changes an id."""
    own = [
        entry
        for entry in entries
        if isinstance(entry.spec, ModelSourceSpec | ImageSourceSpec)
        and entry.plugin.distribution == "timmscope"
    ]
    return own if len(own) == 1 else entries


def _how_to_choose(entries: list[Entry[Spec]]) -> str:
    own = own_or_all(entries)
    others = [entry.id for entry in entries if entry not in own]
    if others:
        return f"{own[0].spec.name}: is timmscope's own; for the other use {' or '.join(others)}:"
    return "use a full name: " + " or ".join(entry.id for entry in entries)


_current: Registry | None = None
_current_lock = threading.Lock()


def get_registry() -> Registry:
    """Return the registry of this process, created at first use."""
    global _current
    with _current_lock:
        if _current is None:
            _current = Registry()
        return _current


def set_registry(registry: Registry | None) -> None:
    """Replace the registry of this process; None has a new one created at the next use."""
    global _current
    with _current_lock:
        _current = registry


def _is_installed(requirement: str) -> bool:
    match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement)
    if match is None:
        return True
    try:
        importlib.metadata.distribution(match[0])
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
