"""A `PluginRecord` keeps what discovery and loading find out about one plugin."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from timmscope_registry.specs import Spec

Status = Literal["ok", "failed", "blocked", "unsupported"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something wrong with a plugin, and what to do about it.

    Attributes:
        plugin: id of the plugin, ``"distribution:entry point"``.
        stage: where it went wrong: ``"metadata"``, ``"version"``, ``"import"``, ``"hooks"``,
            ``"call"``, ``"spec"``, ``"name"``, ``"block"`` or ``"cost"``.
        message: what went wrong, in one line.
        traceback: the frames of the plugin's own code; empty if nothing was raised.
        hint: what to do about it.
    """

    plugin: str
    stage: str
    message: str
    traceback: str = ""
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class PluginInfo:
    """One plugin that was found, whether it loaded or not.

    Attributes:
        id: ``"distribution:entry point"``; for a single file its name.
        name: name of the entry point.
        distribution: normalised name of the distribution; for a single file its name.
        version: version of the distribution; empty for a single file.
        value: the object that the entry point names (``"timmscope_foo.plugin"``); for a single file
            its path.
        group: entry-point group; empty for a single file.
        status: ``"ok"``, ``"failed"``, ``"blocked"`` (never imported) or ``"unsupported"`` (written
            for another API version, never imported).
        load_seconds: seconds spent importing the plugin and calling its hooks.
    """

    id: str
    name: str
    distribution: str
    version: str
    value: str
    group: str
    status: Status
    load_seconds: float = 0.0


@dataclass
class PluginRecord:
    """One plugin while it is loaded: its facts, and the specs and problems found so far."""

    name: str
    distribution: str
    version: str
    value: str
    group: str
    load: Callable[[], object] | None = None
    status: Status = "ok"
    load_seconds: float = 0.0
    specs: list[Spec] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The plugin's id, as in `PluginInfo`."""
        return f"{self.distribution}:{self.name}" if self.name else self.distribution

    @property
    def key(self) -> str:
        """The name in the plugin manager; unlike `id` it differs for files in two folders."""
        return f"{self.id} ({self.value})"

    def report(self, stage: str, message: str, *, hint: str = "", trace: str = "") -> None:
        """Add a problem."""
        self.problems.append(
            Problem(plugin=self.id, stage=stage, message=message, traceback=trace, hint=hint)
        )

    def info(self) -> PluginInfo:
        """Return the public facts."""
        return PluginInfo(**{each.name: getattr(self, each.name) for each in fields(PluginInfo)})


@contextlib.contextmanager
def named_warnings(name: str) -> Iterator[None]:
    """Put `name` before every warning that is shown inside the context.

    The warning filters still decide which warnings are shown.
    """
    original = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        original(Warning(f"{name}: {message}"), category, *where)

    warnings.showwarning = show  # type: ignore[assignment]
    try:
        yield
    finally:
        if warnings.showwarning is show:
            warnings.showwarning = original
