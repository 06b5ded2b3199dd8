"""Finds plugins without importing them: entry points of all distributions, and single files."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from zlib import crc32

from timmscope_registry.plugin_faults import (
    authors_hint,
    one_line,
    plugin_traceback,
    upgrade_hint,
    visible,
)
from timmscope_registry.plugin_record import PluginRecord
from timmscope_registry.specs import API_VERSION, GROUP, api_text
from timmscope_registry.versions import __version__

OURS = "timmscope"
FIRST_PARTY = frozenset(
    (
        "timmscope",
        "timmscope_attribution",
        "timmscope_synthesis",
        "timmscope_attack",
        "timmscope_defence",
        "timmscope_style",
        "timmscope_representation",
    )
)
"""Packages whose plugins the distribution called timmscope may offer."""


def installed() -> Iterator[PluginRecord]:
    """Yield the plugins of all distributions on `sys.path` without importing them.

    Entry points for other major versions (``timmscope.v2``) are yielded as unsupported, unless the
    distribution has an entry point of the same name for this version. First-party plugins come
    first; the others follow in the order of their ids.

    If a distribution is on `sys.path` twice, the first one counts. A distribution that calls itself
    timmscope but is not is reported and not loaded, and hides none of timmscope's own plugins.
    Control characters in names are escaped, because every name may reach a terminal.
    """
    seen: set[str] = set()
    ours: set[tuple[str, str]] = set()
    plugins: list[PluginRecord] = []
    for distribution in importlib.metadata.distributions():
        try:
            text = distribution.read_text("entry_points.txt")
            if not text or "timmscope" not in text:
                continue
            name = re.sub(r"[-_.]+", "-", str(distribution.metadata["Name"])).lower()
            version = distribution.version
            points = list(distribution.entry_points)
        except Exception as error:
            where = _location(distribution)
            broken = PluginRecord(Path(where).name, "unreadable", "", where, "", status="failed")
            broken.report(
                "metadata",
                f"its metadata cannot be read: {one_line(error)}",
                hint=f"reinstall the package, or delete {where}",
                trace=plugin_traceback(error),
            )
            plugins.append(broken)
            continue
        points = [point for point in points if re.fullmatch(r"timmscope(\..*)?", point.group)]
        if name == OURS:  # one that is not ours may be first on sys.path
            if foreign := sorted({point.value for point in points if not _is_first_party(point)}):
                plugins.append(_impostor(_location(distribution), foreign))
                continue
            version = __version__  # whatever the first distribution of that name says
            points = [point for point in points if (point.group, point.name) not in ours]
            ours |= {(point.group, point.name) for point in points}
        elif name in seen:  # an older copy further down sys.path
            continue
        supported = {point.name for point in points if point.group == GROUP}
        for point in points:
            seen.add(name)
            facts = (point.name, name, version, point.value, point.group)
            label, of, number, value, group = map(visible, facts)
            plugin = PluginRecord(label, of, number, value, group)
            if point.group == GROUP:
                plugin.load = point.load
            elif point.name in supported:
                continue
            else:
                plugin.status = "unsupported"
                _report_group(plugin)
            plugins.append(plugin)
    yield from sorted(plugins, key=lambda p: (p.distribution != OURS, p.id, p.group))


def _location(distribution: importlib.metadata.Distribution) -> str:
    return visible(str(getattr(distribution, "_path", "a distribution")))


def _is_first_party(point: importlib.metadata.EntryPoint) -> bool:
    return re.split(r"[.:]", point.value)[0] in FIRST_PARTY


def _impostor(where: str, values: list[str]) -> PluginRecord:
    """Return the record of a distribution that falsely calls itself timmscope and is not loaded."""
    record = PluginRecord(Path(where).name, "foreign", "", where, "", status="failed")
    record.report(
        "metadata",
        f"it calls itself {OURS}, but offers {visible(', '.join(values))}, which is not "
        f"{OURS}'s own; it is ignored",
        hint=f"tell its authors to rename it, or delete {where}",
    )
    return record


def single_file(path: str | Path) -> PluginRecord:
    """Return the record of a plugin that is one Python file.

    Its module gets a unique name in `sys.modules`, so that ``impl=f"{__name__}:Class"`` resolves.
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

    return PluginRecord("", file.name, "", str(file), "", load=load)


def _report_group(plugin: PluginRecord) -> None:
    """Report why the plugin's entry-point group is not supported."""
    major = re.fullmatch(r"timmscope\.v(\d+)", plugin.group)
    if major is None:
        plugin.report(
            "version",
            f"its entry-point group {plugin.group!r} is unknown, expected {GROUP!r}",
            hint=authors_hint(plugin),
        )
        return
    plugin.report(
        "version",
        f"it is written for plugin API {major[1]}, this timmscope offers {api_text(API_VERSION)}",
        hint=upgrade_hint(plugin, int(major[1]) > API_VERSION[0]),
    )
