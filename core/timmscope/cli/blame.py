"""Whose defect an exception is: timmscope's, or a plugin's, which is named with its version."""

from __future__ import annotations

import traceback
from pathlib import Path

from timmscope_registry import PluginError, Registry
from timmscope_registry.found import one_line

DEFECT = 1
"""Exit status of a defect, as against wrong input."""


def plugin_at_fault(error: BaseException, registry: Registry) -> PluginError | None:
    """The error that names the plugin in whose code an exception was raised, and the line there.

    None where no code of a plugin of others had a part in it.
    """
    owners = {
        entry.spec.impl.partition(":")[0]: entry.plugin
        for entry in registry.entries()
        if entry.plugin.distribution != "timmscope"
    }
    packages = {module.partition(".")[0]: plugin for module, plugin in owners.items()}
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        plugin = owners.get(module) or packages.get(module.partition(".")[0])
        if plugin is not None:
            found = plugin, Path(frame.f_code.co_filename).name, line
    if found is None:
        return None
    plugin, file, line = found
    failure = PluginError(
        f"{plugin.id} {plugin.version}".rstrip()
        + f" failed in {file}, line {line}: {one_line(error)}; tell its authors, "
        "everything else works (--debug shows the traceback)"
    )
    if not (isinstance(error, OSError) and error.errno is not None):
        failure.exit_status = DEFECT  # a file or a disk may be at fault instead
    return failure
