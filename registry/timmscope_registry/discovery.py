"""Finding plugins and calling each one alone, so that a broken one breaks nothing else.

Whatever goes wrong becomes a `Problem`: import errors, exceptions and ``sys.exit`` in a plugin,
misspelt hooks, specs of a wrong type, groups and specs of another API version. Only Ctrl-C passes.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Literal, TypeVar
from zlib import crc32

import pluggy

from timmscope_registry import hookspecs
from timmscope_registry.resolve import did_you_mean
from timmscope_registry.specs import (
    API_VERSION,
    GROUP,
    CollectorSpec,
    ImageSourceSpec,
    IndexBackendSpec,
    ModelSourceSpec,
    Spec,
    TechniqueSpec,
    api_text,
    faults,
)

T = TypeVar("T")

HOOKS: dict[str, type[Spec]] = {
    "timmscope_techniques": TechniqueSpec,
    "timmscope_collectors": CollectorSpec,
    "timmscope_model_sources": ModelSourceSpec,
    "timmscope_image_sources": ImageSourceSpec,
    "timmscope_index_backends": IndexBackendSpec,
}
HEAVY = ("torch", "timm", "matplotlib", "h5py", "faiss")
"""Modules that a plugin should not import merely to be listed."""

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
class Found:
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


def new_manager() -> pluggy.PluginManager:
    """Return a plugin manager that knows the hooks and no plugin."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def installed() -> Iterator[Found]:
    """Yield the plugins of all distributions on `sys.path`, imported none of them.

    Entry points of other majors (``timmscope.v2``) come out as unsupported, unless the distribution
    offers the same plugin for ours too. First-party plugins come first, then by name.
    """
    seen: set[str] = set()
    found: list[Found] = []
    for distribution in importlib.metadata.distributions():
        try:
            text = distribution.read_text("entry_points.txt")
            if not text or "timmscope" not in text:
                continue
            name = re.sub(r"[-_.]+", "-", str(distribution.metadata["Name"])).lower()
            version = distribution.version
            points = list(distribution.entry_points)
        except Exception as error:
            where = str(getattr(distribution, "_path", "a distribution"))
            broken = Found(Path(where).name, "unreadable", "", where, "", status="failed")
            broken.report(
                "metadata",
                f"its metadata cannot be read: {_one_line(error)}",
                hint=f"reinstall the package, or delete {where}",
                trace=_format(error),
            )
            found.append(broken)
            continue
        if name in seen:  # an older copy further down sys.path
            continue
        ours = {point.name for point in points if point.group == GROUP}
        for point in points:
            if not re.fullmatch(r"timmscope(\..*)?", point.group):
                continue
            seen.add(name)
            plugin = Found(point.name, name, version, point.value, point.group)
            if point.group == GROUP:
                plugin.load = point.load
            elif point.name in ours:
                continue
            else:
                plugin.status = "unsupported"
                _report_group(plugin)
            found.append(plugin)
    yield from sorted(found, key=lambda f: (f.distribution != "timmscope", f.id, f.group))


def single_file(path: str | Path) -> Found:
    """Describe a plugin that is one Python file.

    Its module gets a name of its own in `sys.modules`, so ``impl=f"{__name__}:Class"`` resolves.
    """
    file = Path(path).expanduser().resolve()
    stem = re.sub(r"\W", "_", file.stem)
    module_name = f"timmscope_file_{stem}_{crc32(str(file).encode()):08x}"

    def load() -> ModuleType:
        spec = importlib.util.spec_from_file_location(module_name, file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{file.name} is not a Python file: its name must end in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(module_name, None)
            raise
        return module

    return Found("", file.name, "", str(file), "", load=load)


def load(plugin: Found, manager: pluggy.PluginManager) -> None:
    """Import one plugin, register it and collect its specs; fills in `plugin`, never raises."""
    before = set(sys.modules)
    start = time.perf_counter()
    try:
        with _quiet():
            _load(plugin, manager)
    except KeyboardInterrupt as error:
        error.add_note(f"while loading the plugin {plugin.id}")
        raise
    finally:
        plugin.load_seconds = time.perf_counter() - start
    heavy = [name for name in HEAVY if name in sys.modules and name not in before]
    if heavy and plugin.group:
        plugin.report(
            "cost",
            f"listing it imports {', '.join(heavy)} ({plugin.load_seconds:.1f} s)",
            hint="its authors should name implementations by import string and import them there",
        )


def _load(plugin: Found, manager: pluggy.PluginManager) -> None:
    assert plugin.load is not None
    try:
        module = plugin.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        plugin.status = "failed"
        plugin.report(
            "import", _one_line(error), hint=_import_hint(plugin, error), trace=_format(error)
        )
        return
    try:
        manager.register(module, name=plugin.id)
        implemented = _check_hooks(plugin, module, manager)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        plugin.status = "failed"
        message = str(error).splitlines()
        text = message[-1] if isinstance(error, pluggy.PluginValidationError) else _one_line(error)
        if isinstance(error, ValueError) and "already registered" in str(error):
            text = f"{plugin.value} is already registered by another entry point"
        plugin.report("hooks", text, hint=_ask_authors(plugin), trace=_format(error))
        return
    others = [other for other in manager.get_plugins() if other is not module]
    for hook in implemented:
        _call(plugin, hook, lambda hook=hook: manager.subset_hook_caller(hook, others)())  # type: ignore[misc]


def _check_hooks(plugin: Found, module: object, manager: pluggy.PluginManager) -> list[str]:
    """Return the hooks that `module` implements; report the ones it seems to have meant."""
    implemented: list[str] = []
    for name in dir(module):
        options = manager.parse_hookimpl_opts(module, name)
        if options is None:
            value = getattr(module, name, None)
            looks_meant = name.startswith("timmscope_") and callable(value)
            if looks_meant and not isinstance(value, type):
                known = "" if name in HOOKS else f", and there is no such hook: {_meant(name)}"
                plugin.report(
                    "hooks",
                    f"the function {name} is not marked with @hookimpl{known}",
                    hint="mark it: from timmscope_registry import hookimpl",
                )
            continue
        hook = options.get("specname") or name
        if hook in HOOKS:
            implemented.append(hook)
        elif not options.get("optionalhook"):
            plugin.report(
                "hooks", f"there is no hook {hook}; {_meant(hook)}", hint=_ask_authors(plugin)
            )
    if not implemented:
        plugin.status = "failed"
        if not plugin.problems:
            plugin.report(
                "hooks",
                f"{plugin.value} implements no hook",
                hint=f"define one of {', '.join(HOOKS)}, marked with @hookimpl",
            )
    return implemented


def _call(plugin: Found, hook: str, call: Callable[[], list[object]]) -> None:
    """Call one hook of one plugin and keep the good specs."""
    expected = HOOKS[hook]
    try:
        results = call()
        if not results:
            raise TypeError(f"{hook} returned None, expected an iterable of {expected.__name__}")
        for result in results:
            if not isinstance(result, Iterable) or isinstance(result, str | bytes):
                raise TypeError(
                    f"{hook} returned {_brief(result)}, expected an iterable of {expected.__name__}"
                )
            for item in result:
                _accept(plugin, hook, item)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if not plugin.specs:
            plugin.status = "failed"
        plugin.report(
            "call",
            f"{hook} failed: {_one_line(error)}",
            hint=_call_hint(plugin, error),
            trace=_format(error),
        )


def _accept(plugin: Found, hook: str, item: object) -> None:
    """Keep a spec, or report why not."""
    expected = HOOKS[hook]
    if not isinstance(item, expected):
        plugin.report(
            "spec",
            f"{hook} yielded {_brief(item)}, expected a {expected.__name__}",
            hint=_ask_authors(plugin),
        )
        return
    label = str(item.name)
    if wrong := faults(item):
        plugin.report("spec", f"{label}: {'; '.join(wrong)}", hint=_ask_authors(plugin))
    elif item.api[0] != API_VERSION[0] or item.api > API_VERSION:
        plugin.report(
            "version",
            f"{label} is written for plugin API {api_text(item.api)}, "
            f"this timmscope offers {api_text(API_VERSION)}",
            hint=_version_hint(plugin, item.api > API_VERSION),
        )
    else:
        plugin.specs.append(item)


def _report_group(plugin: Found) -> None:
    major = re.fullmatch(r"timmscope\.v(\d+)", plugin.group)
    if major is None:
        plugin.report(
            "version",
            f"its entry-point group {plugin.group!r} is unknown, expected {GROUP!r}",
            hint=_ask_authors(plugin),
        )
        return
    plugin.report(
        "version",
        f"it is written for plugin API {major[1]}, this timmscope offers {api_text(API_VERSION)}",
        hint=_version_hint(plugin, int(major[1]) > API_VERSION[0]),
    )


def _version_hint(plugin: Found, newer: bool) -> str:
    package = "timmscope" if newer else plugin.distribution
    return f"upgrade it: python -m pip install --upgrade {package}"


def _import_hint(plugin: Found, error: BaseException) -> str:
    if not plugin.group:
        return f"mend {plugin.value}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        top = error.name.partition(".")[0]
        if top != plugin.value.partition(".")[0]:
            return f"install the package that provides {top!r}, or {_ask_authors(plugin)}"
    return (
        f"reinstall it: python -m pip install --force-reinstall {plugin.distribution}; "
        f"or hide it: TIMMSCOPE_BLOCK={plugin.distribution}"
    )


def _call_hint(plugin: Found, error: BaseException) -> str:
    if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
        return "it may need a newer timmscope: python -m pip install --upgrade timmscope"
    return _ask_authors(plugin)


def _ask_authors(plugin: Found) -> str:
    if not plugin.group:
        return f"mend {plugin.value}"
    return (
        f"tell the authors of {plugin.distribution} {plugin.version}, "
        f"or hide it: TIMMSCOPE_BLOCK={plugin.distribution}"
    )


def _meant(name: str) -> str:
    return did_you_mean(name, HOOKS) or f"the hooks are {', '.join(HOOKS)}"


def _brief(value: object) -> str:
    return f"a {type(value).__name__}"


def _one_line(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({error.code!r})"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _format(error: BaseException) -> str:
    """Traceback without the frames of this module and of the import machinery."""
    report = traceback.TracebackException.from_exception(error)
    frames = [
        frame
        for frame in report.stack
        if frame.filename != __file__
        and not frame.filename.startswith("<frozen importlib")
        and "importlib" not in Path(frame.filename).parts
        and "pluggy" not in Path(frame.filename).parts
    ]
    report.stack = traceback.StackSummary.from_list(frames)
    return "".join(report.format())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send what plugins print to stderr, so that ``--json`` on stdout stays readable."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
