"""What is known of a plugin: found, loaded or not, and everything wrong with it."""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
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
        message: one line.
        traceback: of the plugin's own frames; empty when nothing was raised.
        hint: what to do.
    """

    plugin: str
    stage: str
    message: str
    traceback: str = ""
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class PluginInfo:
    """One plugin as found, loaded or not.

    Attributes:
        id: ``"distribution:entry point"``, or the file's name for a single file.
        name: name of the entry point.
        distribution: normalised name of the distribution, or the file's name.
        version: of the distribution; empty for a file.
        value: the object named by the entry point (``"timmscope_foo.plugin"``) or the file's path.
        group: entry-point group; empty for a file.
        status: ``"ok"``, ``"failed"``, ``"blocked"`` (never imported) or ``"unsupported"`` (another
            API version, never imported).
        load_seconds: time spent importing the plugin and calling its hooks.
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
    """What discovery learnt about one plugin; filled in while it is loaded."""

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
        """Unique among plugins."""
        return f"{self.distribution}:{self.name}" if self.name else self.distribution

    @property
    def key(self) -> str:
        """Name in the plugin manager; files in different folders may share an id."""
        return f"{self.id} ({self.value})"

    def report(self, stage: str, message: str, *, hint: str = "", trace: str = "") -> None:
        """Note one more problem."""
        self.problems.append(
            Problem(plugin=self.id, stage=stage, message=message, traceback=trace, hint=hint)
        )

    def info(self) -> PluginInfo:
        """Freeze it for the public."""
        return PluginInfo(
            id=self.id,
            name=self.name,
            distribution=self.distribution,
            version=self.version,
            value=self.value,
            group=self.group,
            status=self.status,
            load_seconds=self.load_seconds,
        )


def upgrade_hint(plugin: PluginRecord, newer: bool) -> str:
    """Which of the two to upgrade: the plugin, or timmscope where the plugin is newer."""
    package = "timmscope" if newer else plugin.distribution
    return f"upgrade it: python -m pip install --upgrade {package}"


def authors_hint(plugin: PluginRecord) -> str:
    """Whom to tell, and how to live without it meanwhile."""
    if not plugin.group:
        return f"mend {plugin.value}"
    return (
        f"tell the authors of {plugin.distribution} {plugin.version}, "
        f"or hide it: TIMMSCOPE_BLOCK={plugin.distribution}"
    )


def one_line(error: BaseException) -> str:
    """The error's type and message, without line breaks."""
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({error.code!r})"
    try:
        text = " ".join(str(error).split())
    except Exception:  # of a plugin's own class
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def named_warnings(who: str) -> Iterator[None]:
    """Put a name before every warning that is shown inside; filters decide as ever which are."""
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        shown(Warning(f"{who}: {message}"), category, *where)

    warnings.showwarning = show  # type: ignore[assignment]
    try:
        yield
    finally:
        if warnings.showwarning is show:
            warnings.showwarning = shown


def plugin_traceback(error: BaseException) -> str:
    """Traceback of the plugin's own frames, without the registry's and the import machinery's."""
    report = traceback.TracebackException.from_exception(error)
    frames = [
        frame
        for frame in report.stack
        if Path(frame.filename).parent != Path(__file__).parent
        and not frame.filename.startswith("<frozen importlib")
        and "importlib" not in Path(frame.filename).parts
        and "pluggy" not in Path(frame.filename).parts
    ]
    report.stack = traceback.StackSummary.from_list(frames)
    return "".join(report.format())
