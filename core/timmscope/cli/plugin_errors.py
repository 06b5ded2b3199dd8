"""Finds which plugin caused an exception or a warning, and names it with its version."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import FrameType

import timmscope_registry
from timmscope_registry import PluginError, PluginInfo, Registry
from timmscope_registry.plugin_faults import described, fault, one_line

DEFECT = 1
"""Exit status after a defect in code; after wrong input it is 2."""
_TIMMSCOPE = "timmscope"
"""Distribution of the first-party plugins, which messages do not name."""


def plugin_at_fault(error: BaseException, registry: Registry) -> PluginError | None:
    """Return an error that names the third-party plugin and line where an exception was raised.

    Return None if no third-party plugin's code is in the traceback.
    """
    owners = _owners(registry)
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        plugin = _owner(frame, owners)
        if plugin is not None and plugin.distribution != _TIMMSCOPE:
            found = plugin, Path(frame.f_code.co_filename).name, line
    if found is None:
        return None
    plugin, file, line = found
    did = f"failed in {file}, line {line}: {one_line(error)}"
    remedy = "tell its authors, everything else works (--debug shows the traceback)"
    failure = PluginError(fault(plugin, did, advice=remedy))
    if not (isinstance(error, OSError) and error.errno is not None):
        failure.exit_status = DEFECT  # unlike an OSError, which a file or a disk may cause
    return failure


def warning_with_plugin(warning: str, raised_in: FrameType | None, registry: Registry) -> str:
    """Return a warning's text, preceded by the name of the third-party plugin that caused it.

    The innermost plugin on the stack caused it. A warning that timmscope's own code raises gets no
    name, even if a plugin called that code.

    Args:
        warning: the warning's text.
        raised_in: the frame that raised the warning.
        registry: the registry of all plugins.
    """
    owners = _owners(registry)
    while raised_in is not None:
        plugin = _owner(raised_in, owners)
        if plugin is not None:
            return (
                warning if plugin.distribution == _TIMMSCOPE else f"{described(plugin)}: {warning}"
            )
        raised_in = raised_in.f_back
    return warning


def _owners(registry: Registry) -> dict[str, PluginInfo]:
    """Return the plugin of each module and top-level package that holds implementations."""
    owners: dict[str, PluginInfo] = {}
    for entry in registry.entries():
        module = entry.spec.impl.partition(":")[0]
        owners.setdefault(module, entry.plugin)
        owners.setdefault(module.partition(".")[0], entry.plugin)
        if entry.plugin.distribution == _TIMMSCOPE:
            owners.setdefault(timmscope_registry.__name__, entry.plugin)
    return owners


def _owner(frame: FrameType, owners: dict[str, PluginInfo]) -> PluginInfo | None:
    module = str(frame.f_globals.get("__name__", ""))
    return owners.get(module) or owners.get(module.partition(".")[0])
