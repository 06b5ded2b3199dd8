"""``timmscope doctor`` lists problems and what to do about them, without importing torch."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from timmscope.cli import output, parameters
from timmscope.cli.text import plain_help
from timmscope_registry import PluginInfo, Problem, get_registry
from timmscope_registry.plugin_faults import visible
from timmscope_registry.versions import package_version

PACKAGES = (
    "timmscope",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pillow",
    "h5py",
    "faiss-cpu",
    "pydantic",
    "matplotlib",
)


@plain_help
def doctor(
    *stores: Path,
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], negative="")] = False,
    json: parameters.Json = False,
) -> None:
    """Explain problems with plugins and packages and what to do; exit status 2 if there are any.

    Parameters
    ----------
    stores
        Stores to check as well, with their indexes.
    verbose
        Import all plugins and libraries, and show the machine, library versions and loading times.
    """
    versions = {name: package_version(name) for name in PACKAGES}
    notes, faults = packages_advice(versions)
    plugins, problems = get_registry().plugins(), [*faults, *get_registry().problems()]
    if not plugins:
        problems.append(
            Problem(
                plugin="timmscope",
                stage="metadata",
                message="no plugin is found, not even those of timmscope",
                hint="install the package: python -m pip install timmscope",
            )
        )
    seen: list[dict[str, Any]] = []
    facts: dict[str, str] = {}
    spent: dict[str, float] = {}
    if verbose or stores:
        from timmscope.cli import checkup

        seen, faults = checkup.check_stores(stores)
        problems += faults
        if verbose:
            facts = checkup.machine()
            spent, slow, faults = checkup.import_implementations()
            notes, problems = notes + slow, problems + faults
            problems += checkup.openmp_problems(checkup.openmp_libraries())
    if json:
        output.print_json(
            {
                "python": platform.python_version(),
                "versions": versions,
                "machine": facts,
                "plugins": {
                    plugin.id: {
                        "version": plugin.version,
                        "status": plugin.status,
                        "load_ms": round(1000 * plugin.load_seconds, 1),
                        "import_ms": round(1000 * spent[plugin.id], 1)
                        if plugin.id in spent
                        else None,
                    }
                    for plugin in plugins
                },
                "stores": seen,
                "notes": notes,
                "problems": [vars(problem) for problem in problems],
            }
        )
    else:
        _print_facts(versions, facts, plugins if verbose else [], spent, seen)
        _print_problems(notes, problems, {plugin.id: plugin.version for plugin in plugins})
    if problems:
        raise SystemExit(2)


def packages_advice(versions: dict[str, str | None]) -> tuple[list[str], list[Problem]]:
    """Return notes and problems that follow from the versions of packages."""
    notes: list[str] = []
    problems = [
        Problem(
            plugin=name,
            stage="package",
            message="it is not installed",
            hint=f"python -m pip install {name}",
        )
        for name, found in versions.items()
        if found is None and not (name == "faiss-cpu" and package_version("faiss-gpu"))
    ]
    torch, vision = versions.get("torch"), versions.get("torchvision")
    if torch and vision:
        ours = re.match(r"2\.(\d+)", torch)
        theirs = re.match(r"0\.(\d+)", vision)
        if ours and theirs and int(theirs[1]) != int(ours[1]) + 15:
            problems.append(
                Problem(
                    plugin="torchvision",
                    stage="package",
                    message=f"torchvision {vision} is not made for torch {torch}",
                    hint=f"python -m pip install torchvision==0.{int(ours[1]) + 15}.*",
                )
            )
        build = [found.partition("+")[2] for found in (torch, vision)]
        if build[0] != build[1]:
            notes.append(
                f"torch {torch} and torchvision {vision} are different builds; timmscope works "
                "with them, but torchvision's own operators may be missing. To get both from one "
                "place: python -m pip install --force-reinstall torch torchvision "
                f"--index-url https://download.pytorch.org/whl/{build[0] or 'cpu'}"
            )
    return notes, problems


def _print_facts(
    versions: dict[str, str | None],
    facts: dict[str, str],
    plugins: list[PluginInfo],
    spent: dict[str, float],
    stores: list[dict[str, Any]],
) -> None:
    rows = [("python", platform.python_version())]
    rows += [(name, found or "missing") for name, found in versions.items()]
    output.table(("package", "version"), rows)
    if facts:
        output.say()
        output.table(("machine", ""), list(facts.items()))
    if plugins:
        output.say()
        output.table(
            ("plugin", "version", "status", "load", "import at first use"),
            [
                (
                    p.id,
                    p.version,
                    p.status,
                    f"{1000 * p.load_seconds:.0f} ms",
                    f"{1000 * spent[p.id]:.0f} ms" if p.id in spent else "",
                )
                for p in plugins
            ],
            right=("load", "import at first use"),
        )
    if stores:
        output.say()
        output.table(
            ("store", "model", "images", "shards", "layers", "indexes"),
            [
                (
                    fact["store"],
                    fact["model"],
                    fact["images"],
                    fact["shards"],
                    len(fact["layers"]),
                    ", ".join(f"{i['layer']} ({i['backend']})" for i in fact["indexes"]),
                )
                for fact in stores
            ],
            right=("images", "shards", "layers"),
        )


def _print_problems(notes: list[str], problems: list[Problem], released: dict[str, str]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    console = output.console()
    for note in notes:
        console.print()
        console.print(Text.assemble(("note: ", "bold"), note))
    for problem in problems:
        console.print()
        name = visible(f"{problem.plugin} {released.get(problem.plugin, '')}".rstrip())
        said = f" ({problem.stage}): {visible(problem.message)}"
        console.print(Text.assemble((name, "bold red"), said))
        if problem.hint:
            hint = Text.assemble(("what to do: ", "bold"), visible(problem.hint))
            console.print(Padding(hint, (0, 2)))
        if problem.traceback:
            trace = "\n".join(map(visible, problem.traceback.splitlines()))
            console.print(Padding(Text(trace, style="dim"), (0, 4)))
    console.print()
    count = len(problems)
    if count:
        console.print(Text(f"{count} problem{'s' * (count > 1)}", style="bold red"))
    else:
        console.print(Text("no problems", style="bold green"))
