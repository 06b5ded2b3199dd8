"""The plugin registry: what is offered, by whom, and what went wrong while asking."""

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
from timmscope_registry.contributions import described
from timmscope_registry.errors import PluginError
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
    """One thing a plugin offers.

    Attributes:
        id: full name, ``"distribution:name"``.
        spec: what the plugin said about it.
        plugin: who offers it.
    """

    id: str
    spec: S
    plugin: PluginInfo

    @property
    def kind(self) -> str:
        """``"technique"``, ``"collector"``, ``"model source"`` …"""
        return KINDS[type(self.spec)]

    def load(self) -> Any:  # whatever the plugin made; callers check what they need
        """Import and return the implementation.

        Raises:
            PluginError: a requirement is not installed, or the import fails; the cause is chained.
        """
        what = described(self)
        needs = getattr(self.spec, "needs", ())
        if missing := [need for need in needs if not _is_installed(need)]:
            quoted = " ".join(f'"{need}"' for need in missing)
            raise PluginError(f"{what} needs {', '.join(missing)}: python -m pip install {quoted}")
        try:
            with loading.stdout_to_stderr(), named_warnings(what):
                return import_string(self.spec.impl)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise PluginError(f"{what} cannot be loaded from {self.spec.impl}: {reason}") from error


class Registry:
    """Plugins found on `sys.path`, discovered at first use and kept.

    Args:
        block: plugins not to import: a distribution, an entry point's name or
            ``"distribution:entry point"``. Those in the environment variable ``TIMMSCOPE_BLOCK``
            (separated by commas) are blocked as well.
    """

    def __init__(self, *, block: Iterable[str] = ()) -> None:
        named = [*os.environ.get(BLOCK_VARIABLE, "").split(","), *block]
        self._block = tuple(dict.fromkeys(name.strip() for name in named if name.strip()))
        self._lock = threading.RLock()
        self._manager: pluggy.PluginManager
        self._found: list[PluginRecord] | None = None
        self._entries: list[Entry[Spec]] = []
        self._problems: list[Problem] = []

    # What is offered

    def techniques(self, family: Family | None = None) -> list[Entry[TechniqueSpec]]:
        """All techniques, or those of one family."""
        entries = self._of(TechniqueSpec)
        return [entry for entry in entries if family in (None, entry.spec.family)]

    def collectors(self) -> list[Entry[CollectorSpec]]:
        """All collectors."""
        return self._of(CollectorSpec)

    def model_sources(self) -> list[Entry[ModelSourceSpec]]:
        """All schemes of `load_model`."""
        return self._of(ModelSourceSpec)

    def image_sources(self) -> list[Entry[ImageSourceSpec]]:
        """All kinds of image collection."""
        return self._of(ImageSourceSpec)

    def index_backends(self) -> list[Entry[IndexBackendSpec]]:
        """All nearest-neighbour engines."""
        return self._of(IndexBackendSpec)

    # One of them, by short name or full id; `PluginError` when unknown or not unique

    def technique(self, name: str, family: Family | None = None) -> Entry[TechniqueSpec]:
        """Return one technique by short name or ``"distribution:name"``.

        Where there is none, those of `family`, or all, are what may have been meant.
        """
        return self._one(TechniqueSpec, name, self.techniques(family))

    def collector(self, name: str) -> Entry[CollectorSpec]:
        """Return one collector by short name or ``"distribution:name"``."""
        return self._one(CollectorSpec, name)

    def model_source(self, scheme: str) -> Entry[ModelSourceSpec]:
        """Return one model source by scheme or ``"distribution:scheme"``."""
        return self._one(ModelSourceSpec, scheme)

    def image_source(self, scheme: str) -> Entry[ImageSourceSpec]:
        """Return one image source by scheme or ``"distribution:scheme"``."""
        return self._one(ImageSourceSpec, scheme)

    def index_backend(self, name: str) -> Entry[IndexBackendSpec]:
        """Return one index backend by short name or ``"distribution:name"``."""
        return self._one(IndexBackendSpec, name)

    # Who offers it

    def plugins(self) -> list[PluginInfo]:
        """All plugins, whether they loaded or not."""
        return [found.info() for found in self._discovered()]

    def entries(self) -> list[Entry[Spec]]:
        """Everything on offer, in the order of plugins."""
        self._discovered()
        return list(self._entries)

    def problems(self) -> list[Problem]:
        """Everything that went wrong, in the order of plugins."""
        self._discovered()
        return list(self._problems)

    def load_file(self, path: str | Path) -> PluginInfo:
        """Load a plugin that is a single Python file; loading it again takes the new contents.

        Raises:
            PluginError: there is no such file, or it cannot be loaded. In the latter case
                `problems` has the traceback, and everything else keeps working.
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
            if self._found is None:
                try:
                    self._discover()
                except BaseException:
                    self._found = None
                    raise
            assert self._found is not None
            return self._found

    def _discover(self) -> None:
        """Load plugin after plugin; one that asks for others meanwhile is told of those before."""
        self._found, self._manager = [], loading.new_manager()
        for plugin in discovery.installed():
            if self._block and {plugin.id, plugin.name, plugin.distribution} & set(self._block):
                plugin.status = "blocked"
                plugin.problems.clear()
            elif plugin.load is not None:
                loading.load(plugin, self._manager)
            self._found.append(plugin)
            self._collect()

    def _collect(self) -> None:
        """Give every spec its full id, and compare names across plugins."""
        assert self._found is not None
        entries: dict[tuple[type[Spec], str], Entry[Spec]] = {}
        problems: list[Problem] = []
        for found in self._found:
            info = found.info()
            problems += found.problems
            for spec in found.specs:
                entry = Entry(id=f"{found.distribution}:{spec.name}", spec=spec, plugin=info)
                first = entries.setdefault((type(spec), entry.id), entry)
                if first is not entry:
                    problems.append(
                        Problem(
                            plugin=found.id,
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
                hint="use a full name: " + " or ".join(entry.id for entry in entries),
            )
            for (_, name), entries in by_name.items()
            if len(entries) > 1
        ]

    def _useless_blocks(self) -> list[Problem]:
        found = self._found or []
        known = {name for f in found for name in (f.distribution, f.id, f.name) if name}
        return [
            Problem(
                plugin=name,
                stage="block",
                message=f"it is to be blocked, but no such plugin is installed; "
                f"{did_you_mean(name, known)}".rstrip("; "),
                hint=f"correct --block or {BLOCK_VARIABLE}",
            )
            for name in self._block
            if name not in known
        ]

    def _of(self, kind: type[S]) -> list[Entry[S]]:
        self._discovered()
        return [cast("Entry[S]", entry) for entry in self._entries if type(entry.spec) is kind]

    def _one(self, kind: type[S], name: str, fitting: list[Entry[S]] | None = None) -> Entry[S]:
        entries = self._of(kind)
        for entry in entries:
            if entry.id == name:
                return entry
        same = [entry for entry in entries if entry.spec.name == name]
        if len(same) == 1:
            return same[0]
        label = KINDS[kind]
        if same:
            raise PluginError(
                f"several plugins offer the {label} {name!r}: "
                f"use {' or '.join(entry.id for entry in same)}"
            )
        fitting = entries if fitting is None else fitting
        names = [entry.spec.name for entry in fitting]
        if nearest(name, names):
            advice = did_you_mean(name, names)
        elif nearest(name, ids := [entry.id for entry in fitting]):
            advice = did_you_mean(name, ids)
        else:
            advice = f"known are {', '.join(sorted(set(names)))}" if names else "none is installed"
        hurt = [f.id for f in self._found or [] if f.status in ("failed", "unsupported")]
        doctor = f"; {', '.join(hurt)} did not load, see `timmscope doctor`" if hurt else ""
        raise PluginError(f"unknown {label} {name!r}: {advice}{doctor}")


_current: Registry | None = None
_current_lock = threading.Lock()


def get_registry() -> Registry:
    """Return the process's registry, made at first use."""
    global _current
    with _current_lock:
        if _current is None:
            _current = Registry()
        return _current


def set_registry(registry: Registry | None) -> None:
    """Replace the process's registry; None makes a fresh one at next use."""
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
