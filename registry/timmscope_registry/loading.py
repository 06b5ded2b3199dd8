"""Loads each plugin separately, so that a broken plugin does not affect the others.

Every failure becomes a `Problem`: import errors, exceptions and ``sys.exit`` in a plugin, misspelt
hooks, and specs of a wrong type or another API version. Only Ctrl-C is raised.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator

import pluggy

from timmscope_registry import hookspecs
from timmscope_registry.plugin_faults import (
    authors_hint,
    brief,
    described,
    one_line,
    plugin_traceback,
    upgrade_hint,
)
from timmscope_registry.plugin_record import PluginRecord, named_warnings
from timmscope_registry.resolve import did_you_mean
from timmscope_registry.specs import (
    API_VERSION,
    CollectorSpec,
    ImageSourceSpec,
    IndexBackendSpec,
    ModelSourceSpec,
    Spec,
    TechniqueSpec,
    api_text,
    faults,
)

HOOKS: dict[str, type[Spec]] = {
    "timmscope_techniques": TechniqueSpec,
    "timmscope_collectors": CollectorSpec,
    "timmscope_model_sources": ModelSourceSpec,
    "timmscope_image_sources": ImageSourceSpec,
    "timmscope_index_backends": IndexBackendSpec,
}
HEAVY = ("torch", "timm", "matplotlib", "h5py", "faiss")
"""Modules that listing a plugin should not import."""
SLOW_S = 1.0
"""Seconds after which a plugin is reported as slow to list, because every command waits for it."""


def new_manager() -> pluggy.PluginManager:
    """Return a plugin manager that knows the hooks and no plugin."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def load(plugin: PluginRecord, manager: pluggy.PluginManager) -> None:
    """Import a plugin, register it and collect its specs in `plugin`; errors become problems."""
    before = set(sys.modules)
    start = time.perf_counter()
    try:
        with stdout_to_stderr(), warnings.catch_warnings(), named_warnings(described(plugin)):
            _load(plugin, manager)
    except KeyboardInterrupt as error:
        error.add_note(f"while loading the plugin {described(plugin)}")
        raise
    finally:
        plugin.load_seconds = time.perf_counter() - start
    heavy = [name for name in HEAVY if name in sys.modules and name not in before]
    took = f"{1000 * plugin.load_seconds:.0f} ms"
    if not plugin.group:
        return
    if heavy:
        plugin.report(
            "cost",
            f"listing it imports {', '.join(heavy)} ({took})",
            hint="its authors should name implementations by import string and import them there",
        )
    elif plugin.load_seconds > SLOW_S:
        plugin.report(
            "cost",
            f"listing it takes {took}, on every command",
            hint=f"its authors should move slow work from {plugin.value} to the implementations; "
            f"to hide it: TIMMSCOPE_BLOCK={plugin.distribution}",
        )


def _load(plugin: PluginRecord, manager: pluggy.PluginManager) -> None:
    assert plugin.load is not None
    try:
        module = plugin.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        plugin.status = "failed"
        plugin.report(
            "import",
            one_line(error),
            hint=_import_hint(plugin, error),
            trace=plugin_traceback(error),
        )
        return
    try:
        manager.register(module, name=plugin.key)
        implemented = _check_hooks(plugin, module, manager)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        plugin.status = "failed"
        message = str(error).splitlines()
        text = message[-1] if isinstance(error, pluggy.PluginValidationError) else one_line(error)
        if isinstance(error, ValueError) and "already registered" in str(error):
            text = f"{plugin.value} is already registered by another entry point"
        plugin.report("hooks", text, hint=authors_hint(plugin), trace=plugin_traceback(error))
        return
    others = [other for other in manager.get_plugins() if other is not module]
    for hook in implemented:
        _call(plugin, hook, lambda hook=hook: manager.subset_hook_caller(hook, others)())  # type: ignore[misc]
    if plugin.problems and not plugin.specs:
        plugin.status = "failed"


def _check_hooks(plugin: PluginRecord, module: object, manager: pluggy.PluginManager) -> list[str]:
    """Return the hooks that `module` implements; report functions that look like hooks."""
    implemented: list[str] = []
    for name in dir(module):
        options = manager.parse_hookimpl_opts(module, name)
        if options is None:
            value = getattr(module, name, None)
            looks_like_hook = name.startswith("timmscope_") and callable(value)
            if looks_like_hook and not isinstance(value, type):
                known = "" if name in HOOKS else f", and there is no such hook: {_suggestion(name)}"
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
                "hooks", f"there is no hook {hook}; {_suggestion(hook)}", hint=authors_hint(plugin)
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


def _call(plugin: PluginRecord, hook: str, call: Callable[[], list[object]]) -> None:
    """Call one hook of one plugin and keep its valid specs."""
    expected = HOOKS[hook]
    try:
        for result in call() or [None]:
            if not isinstance(result, Iterable) or isinstance(result, str | bytes):
                came = f"{hook} returned {brief(result)}"
                wanted = f"expected an iterable of {expected.__name__}"
                plugin.report("call", f"{came}; {wanted}", hint=authors_hint(plugin))
                continue
            for item in result:
                _keep_spec(plugin, hook, item)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        plugin.report(
            "call",
            f"{hook} failed: {one_line(error)}",
            hint=_call_hint(plugin, error),
            trace=plugin_traceback(error),
        )


def _keep_spec(plugin: PluginRecord, hook: str, item: object) -> None:
    """Keep a valid spec, or report what is wrong with it."""
    expected = HOOKS[hook]
    if not isinstance(item, expected):
        plugin.report(
            "spec",
            f"{hook} yielded {brief(item)}; expected a {expected.__name__}",
            hint=authors_hint(plugin),
        )
        return
    label = str(item.name)
    if wrong := faults(item):
        plugin.report("spec", f"{label}: {'; '.join(wrong)}", hint=authors_hint(plugin))
    elif item.api[0] != API_VERSION[0] or item.api > API_VERSION:
        plugin.report(
            "version",
            f"{label} is written for plugin API {api_text(item.api)}, "
            f"this timmscope offers {api_text(API_VERSION)}",
            hint=upgrade_hint(plugin, item.api > API_VERSION),
        )
    else:
        plugin.specs.append(item)


def _import_hint(plugin: PluginRecord, error: BaseException) -> str:
    if not plugin.group:
        return f"fix {plugin.value}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        top = error.name.partition(".")[0]
        if top != plugin.value.partition(".")[0]:
            return f"install the package that provides {top!r}, or {authors_hint(plugin)}"
    return (
        f"reinstall it: python -m pip install --force-reinstall {plugin.distribution}; "
        f"or hide it: TIMMSCOPE_BLOCK={plugin.distribution}"
    )


def _call_hint(plugin: PluginRecord, error: BaseException) -> str:
    if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
        return "it may need a newer timmscope: python -m pip install --upgrade timmscope"
    return authors_hint(plugin)


def _suggestion(name: str) -> str:
    return did_you_mean(name, HOOKS, 1) or f"the hooks are {', '.join(HOOKS)}"


class _StderrWriter(io.TextIOBase):
    """A stream that writes to stderr; closing it does not close stderr."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what plugins print to stderr, so that ``--json`` on stdout stays readable."""
    with contextlib.redirect_stdout(_StderrWriter()):
        yield
