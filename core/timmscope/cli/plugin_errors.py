"""Finds which plugin caused an exception or a warning, and names it with its version."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import FrameType

import timmscope_registry
from timmscope_registry import PluginError, PluginInfo, Registry
from timmscope_registry.plugin_faults import described, fault, one_line

DEFECT = 1
"""Exit status of a defect, as against wrong input."""
_OURS = "timmscope"
"""The distribution whose plugins are ours."""


def plugin_at_fault(error: BaseException, registry: Registry) -> PluginError | None:
    """The error that names the plugin in whose code an exception was raised, and the line there.

    None where no code of a plugin of others had a part in it.
    """
    owners = _owners(registry)
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        plugin = _owner(frame, owners)
        if plugin is not None and plugin.distribution != _OURS:
            found = plugin, Path(frame.f_code.co_filename).name, line
    if found is None:
        return None
    plugin, file, line = found
    did = f"failed in {file}, line {line}: {one_line(error)}"
    remedy = "tell its authors, everything else works (--debug shows the traceback)"
    failure = PluginError(fault(plugin, did, advice=remedy))
    if not (isinstance(error, OSError) and error.errno is not None):
        failure.exit_status = DEFECT  # a file or a disk may be at fault instead
    return failure


def with_its_plugin(warning: str, raised_in: FrameType | None, registry: Registry) -> str:
    """A warning, after the name of the plugin of others whose doing it is.

    That is the one that warns, or called what warns. What timmscope has to say to a plugin that
    called it stays in its own name.

    Args:
        warning: its text.
        raised_in: the frame that raised it.
        registry: of all plugins.
    """
    owners = _owners(registry)
    while raised_in is not None:
        plugin = _owner(raised_in, owners)
        if plugin is not None:
            return warning if plugin.distribution == _OURS else f"{described(plugin)}: {warning}"
        raised_in = raised_in.f_back
    return warning


def _owners(registry: Registry) -> dict[str, PluginInfo]:
    """Whose modules and whole packages are, by name; what is ours stays ours."""
    owners: dict[str, PluginInfo] = {}
    for entry in registry.entries():
        module = entry.spec.impl.partition(":")[0]
        owners.setdefault(module, entry.plugin)
        owners.setdefault(module.partition(".")[0], entry.plugin)
        if entry.plugin.distribution == _OURS:
            owners.setdefault(timmscope_registry.__name__, entry.plugin)
    return owners


def _owner(frame: FrameType, owners: dict[str, PluginInfo]) -> PluginInfo | None:
    module = str(frame.f_globals.get("__name__", ""))
    return owners.get(module) or owners.get(module.partition(".")[0])
