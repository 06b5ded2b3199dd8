"""``timmscope plugins`` lists what plugins contribute without importing it, and creates plugins."""

from __future__ import annotations

import shlex
from typing import Literal

from cyclopts import App, Parameter

from timmscope.cli import output, parameters
from timmscope.cli.text import plain_help
from timmscope_registry import API_VERSION, TechniqueSpec, get_registry

COLOURS = {"ok": "green", "failed": "red", "unsupported": "red", "blocked": "yellow"}


# Written out, because a type checker and the help need the choices; a test compares them.
Base = Literal[
    "attribution",
    "synthesis",
    "attack",
    "universal-attack",
    "defence",
    "certification",
    "style",
    "store",
    "stores",
    "model",
    "training",
    "collector",
    "model-source",
    "image-source",
    "index-backend",
]

app = App(
    name="plugins",
    help="List techniques, collectors, sources and index backends, or create a plugin.",
    version_flags=(),
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative=""),
    help_format="plaintext",
)


@app.command
@plain_help
def new(
    name: str,
    /,
    *,
    base: Base,
    folder: parameters.Output = None,
) -> None:
    """Write a package with one working example, its tests, a README and a CI file.

    Parameters
    ----------
    name
        Name of the technique, collector, scheme or backend: lower case with hyphens, as in
        ``edge-energy``.
    base
        Base class of the technique, which says what it takes; or another kind of plugin.
    folder
        Where to write; by default ``timmscope-NAME``.
    """
    from timmscope.scaffold import new_plugin

    files = new_plugin(name, base, folder)
    root = files[0].parent
    for file in files:
        output.say(f"wrote {file}")
    install = 'python -m pip install -e ".[test]"'
    output.say(f"\nnow: cd {shlex.quote(str(root))} && {install} && python -m pytest")


@app.default
@app.command(name="list")
@plain_help
def listing(*, json: parameters.Json = False) -> None:
    """List techniques, collectors, sources and index backends of all plugins."""
    registry = get_registry()
    entries, problems = registry.entries(), registry.problems()
    if json:
        output.print_json(
            {
                "api": list(API_VERSION),
                "plugins": [_plain(plugin) for plugin in registry.plugins()],
                "entries": [
                    {
                        "id": entry.id,
                        "name": entry.spec.name,
                        "kind": entry.kind,
                        "family": getattr(entry.spec, "family", None),
                        "base": getattr(entry.spec, "base", None),
                        "summary": entry.spec.summary,
                        "impl": entry.spec.impl,
                        "api": list(entry.spec.api),
                        "plugin": entry.plugin.id,
                    }
                    for entry in entries
                ],
                "problems": [_plain(problem) for problem in problems],
            }
        )
        return
    from rich.text import Text

    rows: list[tuple[object, ...]] = []
    for plugin in registry.plugins():
        status = Text(plugin.status, style=COLOURS[plugin.status])
        load = f"{plugin.load_seconds * 1000:.0f} ms"
        mine = [entry for entry in entries if entry.plugin == plugin]
        for entry in mine:
            spec = entry.spec
            kind = spec.family if isinstance(spec, TechniqueSpec) else entry.kind
            api = ".".join(map(str, spec.api))
            rows.append((entry.id, kind, plugin.version, api, status, load))
        if not mine:
            group = plugin.group.rpartition(".v")[2]
            spent = load if plugin.load_seconds else ""
            rows.append((plugin.id, "", plugin.version, group, status, spent))
    output.table(
        ("id", "family or kind", "version", "API", "status", "load"), rows, right=("load",)
    )
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        output.say(f"\n{count}: see `timmscope doctor`")


def _plain(record: object) -> dict[str, object]:
    return dict(vars(record))
