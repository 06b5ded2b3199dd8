"""Generates the reference pages from the code, so that they always agree with it.

Sphinx calls `generate(folder)` before each build of the docs. The pages cover every technique with
its parameters, every command, every hook that a plugin may implement, every public name and every
error.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts import App, Parameter

import timmscope
import timmscope_registry
from timmscope.cli import flags
from timmscope.cli.main import app as command_line
from timmscope.cli.technique_command import command
from timmscope.cli.text import sections
from timmscope.parameters.names import Meant, Names
from timmscope.techniques.lookup import BASES
from timmscope_registry import FAMILIES, Entry, TechniqueSpec, get_registry, hookspecs

SAMPLES = Path(__file__).parent / "images" / "techniques"
"""Folder with a figure of each technique, made by `make gallery`."""
FAMILY_TITLES = {
    "attribution": "Attribution: which pixels matter",
    "synthesis": "Synthesis: images that a unit responds to most",
    "attack": "Attack: small changes that make a model misclassify",
    "defence": "Defence: what makes a model harder to fool",
    "style": "Style: the content of one picture in the style of another",
    "representation": "Representation: what the layers of a network encode",
}
PUBLIC_GROUPS = {
    "models": "Models",
    "objectives": "Objectives",
    "lookup": "Techniques by name",
    "techniques": "Techniques and results",
    "parameters": "Parameters",
    "draws": "Random defences",
    "evaluation": "Judging explanations",
    "images": "Images",
    "mining": "Mining",
    "store": "Stores",
    "units": "Units",
    "atlas": "Atlases",
    "index": "Search",
    "receptive_fields": "Receptive fields",
    "progress": "Progress",
}


def generate(folder: Path) -> list[str]:
    """Write all pages into `folder`; return one line for each object that cannot be described."""
    problems: list[str] = []
    pages = {
        "cli.md": commands_page(),
        "plugin-hooks.md": hooks_page(),
        "errors.md": errors_page(),
        "api-timmscope.md": public_page(
            "timmscope",
            "The library. Import its names with `from timmscope import …`; submodules are private.",
            problems,
        ),
        "api-registry.md": public_page(
            "timmscope_registry",
            "The package that a plugin's `plugin.py` imports. It never imports torch.",
            problems,
        ),
        "api-hooks.md": public_page(
            "timmscope_registry.hooks",
            "Model hooks: record and edit activations, cut the graph, change how gradients pass. "
            "`HookedModel` wraps all of this; use the package directly for modules that are not "
            "image models.",
            problems,
        ),
        "api-testing.md": testing_page(problems),
        **technique_pages(problems),
        "sources.md": contributions_page(),
    }
    write(folder, pages)
    return problems


def write(folder: Path, pages: dict[str, str]) -> None:
    """Write pages that changed, and remove pages that no longer exist."""
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in folder.rglob("*.md"):
        if path.relative_to(folder).as_posix() not in pages:
            path.unlink()


# Techniques


def technique_pages(problems: list[str]) -> dict[str, str]:
    """Make one page per technique, and the list of techniques by family."""
    pages: dict[str, str] = {}
    fields = "Every field of a technique is a Python parameter and a command-line flag."
    index = ["# Techniques", "", fields, ""]
    found = [e for e in get_registry().techniques() if e.plugin.distribution == "timmscope"]
    own = sorted(found, key=lambda entry: FAMILIES.index(entry.spec.family))
    for family in dict.fromkeys(entry.spec.family for entry in own):
        index += [f"## {FAMILY_TITLES[family]}", "", "| technique | what it does |", "|---|---|"]
        for entry in own:
            if entry.spec.family != family:
                continue
            name = entry.spec.name
            index.append(f"| [{name}](techniques/{name}.md) | {entry.spec.summary} |")
            try:
                pages[f"techniques/{name}.md"] = technique_page(entry, problems)
            except Exception as error:
                problems.append(f"technique {name}: {type(error).__name__}: {error}")
                pages[f"techniques/{name}.md"] = f"# {name}\n\n{entry.spec.summary}\n"
        index.append("")
    index += toctree(f"techniques/{entry.spec.name}" for entry in own)
    return {"techniques.md": "\n".join(index) + "\n", **pages}


def technique_page(entry: Entry[TechniqueSpec], problems: list[str]) -> str:
    """Describe one technique: formula, papers, parameters, errors, result and command line."""
    spec = entry.spec
    kind = timmscope.technique(entry.id)
    parts = sections(inspect.cleandoc(kind.__doc__ or ""))
    package = kind.__module__.partition(".")[0]
    result = result_name(kind)
    own_result = result in importlib.import_module(package).__all__
    about = "below" if own_result else "in [the API](../api-timmscope.md)"
    lines = [f"# {spec.name}", "", spec.summary, "", markdown(parts[""]), ""]
    lines += [f"- Family: {spec.family}; base: `{BASES[spec.base].__name__}`"]
    lines += [f"- Paper: {paper}" for paper in papers(parts)]
    lines += [f"- Needs: {', '.join(f'`{need}`' for need in spec.needs)}"] if spec.needs else []
    lines += [f'- Python: `from {package} import {kind.__name__}`, or `technique("{spec.name}")`']
    lines += [f"- Result: `{result}`, described {about}"]
    picture = SAMPLES / f"{spec.name}.webp"
    if picture.is_file():
        lines += ["", f"![A figure of {spec.name}](../../../images/techniques/{picture.name})"]
    lines += ["", "## Parameters", ""]
    if kind.model_fields:
        lines += ["| name | type | default | what it does |", "|---|---|---|---|"]
    else:
        lines += ["None."]
    for name, info in kind.model_fields.items():
        default = "required"
        if not info.is_required():
            value = info.get_default(call_default_factory=True, validated_data={})
            default = "none" if value is None else f"`{value!r}`"
        limits = flags.bounds(info)
        marks = [item for item in info.metadata if isinstance(item, Names)]
        annotation = Annotated[info.annotation, marks[0]] if marks else info.annotation
        shown = type_text(annotation) + (f", {limits}" if limits else "")
        cells = (f"`{name}`", shown, default, " ".join((info.description or "").split()))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += ["", "## Errors", "", *errors_of(parts)]
    lines += ["", "## Command line", "", command_of(spec.name, kind)]
    if own_result:
        module = importlib.import_module(package)
        problems += [f"{each} has no docstring" for each in undocumented(module, result)]
        lines += ["", "## Result", "", "```{eval-rst}", *directive(module, result), "```"]
    return "\n".join(lines) + "\n"


def result_name(kind: type[timmscope.Technique]) -> str:
    """Name the class of a technique's result."""
    method = getattr(kind, "analyse", kind.__call__)
    return str(method.__annotations__["return"])


def papers(parts: dict[str, str]) -> list[str]:
    """List the papers that a docstring names, one line each."""
    listed = f"\n{parts.get('Paper', '').removeprefix('- ')}".split("\n- ")
    return [" ".join(paper.split()) for paper in listed if paper.strip()]


def errors_of(parts: dict[str, str]) -> list[str]:
    """List the errors that a docstring names, one bullet each."""
    text = re.sub(r"\n +", " ", parts.get("Raises", ""))
    return [re.sub(r"^(\w+):", r"- `\1`:", line) for line in text.splitlines()]


def command_of(name: str, kind: type[timmscope.Technique]) -> str:
    """Describe the arguments of `timmscope run NAME` besides the technique's parameters."""
    program = f"timmscope run {name}"
    function = command(kind, name)
    app = App(name=program, version_flags=(), default_parameter=Parameter(negative=""))
    app.default(function)
    _, _, text = app.generate_docs(heading_level=2).partition("\n```\n")
    groups = re.split(r"\n(?=\*\*[^*\n]+\*\*:\n)", text)[1:]
    kept = [part.strip() for part in groups if not part.startswith(f"**Parameters of {name}")]
    usage = flags.usage(program, function).removeprefix("Usage: ")
    body = "\n\n".join([f"```text\n{usage}\n```", *kept])
    return single_backticks(body).replace(" *[default: ()]*", "")


def type_text(annotation: Any) -> str:
    """Describe a type for readers: `whole number`, `linf or l2`, `number or none`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        mark = next((item for item in arguments[1:] if isinstance(item, Names)), None)
        if mark is not None:
            of_what = Meant.of(mark.kind, arguments[0]).of_what
            return f"{mark.kind} {of_what}".strip()
        extra = [getattr(item, "json_schema_extra", None) for item in arguments[1:]]
        if any(isinstance(item, dict) and item.get("kind") == "layer" for item in extra):
            return "layer name"
        return type_text(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(type_text(part) for part in arguments)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (tuple, list):
        parts = [type_text(part) for part in arguments if part is not ...]
        return f"list of {', '.join(parts)}"
    if origin is dict:
        return f"{type_text(arguments[0])} to {type_text(arguments[1])}"
    words = {int: "whole number", float: "number", bool: "yes or no", str: "text", NoneType: "none"}
    return words.get(annotation, f"`{getattr(annotation, '__name__', annotation)}`")


# Command line


def commands_page() -> str:
    """Make the page of all commands; flags that all commands share appear once."""
    text: str = command_line.generate_docs()
    text = re.sub(r"## Table of Contents\n.*?(?=\*\*)", "", text, count=1, flags=re.DOTALL)
    head, *sections = re.split(r"\n(?=## )", text)
    shared = re.compile(r"\*\*Everywhere\*\*:\n\n(?:\* .*\n?)+")
    body = "\n".join([head, *(shared.sub("", section) for section in sections)])
    statuses = inspect.cleandoc(sys.modules["timmscope.cli.main"].__doc__ or "").split("\n\n")[1]
    intro = (
        f"# Command line\n\n{statuses}\n\n"
        "Each technique of `timmscope run` is on [its own page](techniques.md).\n"
    )
    return intro + single_backticks(body).replace("```console", "```text").partition("\n")[2]


# Plugins


def hook_names() -> list[str]:
    """Return the names of the hook specs, in the order of the module."""
    functions = inspect.getmembers(hookspecs, inspect.isfunction)
    own = [(f, n) for n, f in functions if n.startswith("timmscope_")]
    return [name for _, name in sorted(own, key=lambda pair: pair[0].__code__.co_firstlineno)]


def hooks_page() -> str:
    """Make the page of hook specs: signature, docstring, example, and the records they yield."""
    lines = ["# Plugin hooks", "", markdown(inspect.cleandoc(hookspecs.__doc__ or "")), ""]
    for name in hook_names():
        function = getattr(hookspecs, name)
        signature = str(inspect.signature(function, eval_str=False)).replace("'", "")
        lines += [f"## {name}", "", "```python", f"def {name}{signature}", "```", ""]
        lines += [markdown(inspect.cleandoc(function.__doc__ or "")), ""]
    return "\n".join(lines)


def contributions_page() -> str:
    """Make the page of built-in model sources, image sources, collectors and index backends."""
    registry = get_registry()
    kinds: tuple[tuple[str, str, Iterable[Entry[Any]]], ...] = (
        ("Model sources", "The scheme before a model's colon.", registry.model_sources()),
        ("Image sources", "The places from which images can be read.", registry.image_sources()),
        ("Collectors", "The data that a pass over images can keep.", registry.collectors()),
        ("Index backends", "The engines of nearest-neighbour search.", registry.index_backends()),
    )
    lines = ["# Sources, collectors and backends", ""]
    lines += ["The core registers these contributions through the same hooks as any plugin.", ""]
    for title, about, entries in kinds:
        lines += [f"## {title}", "", about, "", "| name | what it is | example |", "|---|---|---|"]
        for entry in entries:
            if entry.plugin.distribution == "timmscope":
                example = getattr(entry.spec, "example", "")
                shown = f"`{example}`" if example else ""
                lines.append(f"| `{entry.spec.name}` | {entry.spec.summary} | {shown} |")
        lines.append("")
    return "\n".join(lines)


# Public names


def public_page(package: str, about: str, problems: list[str]) -> str:
    """Make the page of all public names of a package, by subject."""
    module = importlib.import_module(package)
    groups: dict[str, list[str]] = {}
    errors: list[str] = []
    for name in module.__all__:
        try:
            value = getattr(module, name)
        except Exception as error:
            problems.append(f"{package}.{name}: {type(error).__name__}: {error}")
            continue
        problems += [f"{each} has no docstring" for each in undocumented(module, name)]
        if isinstance(value, type) and issubclass(value, timmscope.TimmscopeError):
            errors.append(name)
        else:
            home = getattr(value, "__module__", "") or ""
            part = home.split(".")[1] if home.startswith("timmscope.") else ""
            groups.setdefault(PUBLIC_GROUPS.get(part, "More"), []).append(name)
    lines = [f"# {package}", "", about, ""]
    order = [*PUBLIC_GROUPS.values(), "More"]
    for title in sorted(groups, key=order.index):
        lines += [f"## {title}", ""] if len(groups) > 1 else []
        for name in groups[title]:
            lines += ["```{eval-rst}", *directive(module, name), "```", ""]
    if errors:
        lines += ["## Errors", "", "The page [Errors](errors.md) describes these:", ""]
        lines += [", ".join(f"`{name}`" for name in errors) + ".", ""]
    return "\n".join(lines)


def testing_page(problems: list[str]) -> str:
    """Make the page on testing plugins: the functions, the fixtures, and every check by name."""
    from timmscope.testing import checks, fixtures

    lines = [
        public_page(
            "timmscope.testing",
            "Tests for authors of plugins; see [Test a plugin](../../how-to/test-a-plugin.md).",
            problems,
        ),
        "## Fixtures",
        "",
        'With `pytest_plugins = ["timmscope.testing.fixtures"]` in `conftest.py`:',
        "",
        "| fixture | what it is |",
        "|---|---|",
    ]
    lines += [
        f"| `{name}` | {' '.join((value.__doc__ or '').split())} |"
        for name, value in vars(fixtures).items()
        if type(value).__name__ == "FixtureFunctionDefinition"
    ]
    for kind in sorted(set(registry_kinds())):
        lines += ["", f"## Checks of a {kind}", "", "| check | what it promises |", "|---|---|"]
        lines += [
            f"| `{each.name}` | {' '.join(each.promise.split()).replace('|', '&#124;')} |"
            for each in checks(kind)
        ]
    return "\n".join(lines) + "\n"


def registry_kinds() -> list[str]:
    """Return the kinds of contribution, as the registry names them."""
    return [entry.kind for entry in get_registry().entries()]


def directive(module: ModuleType, name: str) -> list[str]:
    """Make the autodoc directive for one name; data are described from their own module."""
    value = getattr(module, name)
    full = f"{module.__name__}.{name}"
    if isinstance(value, type):
        return [f".. autoclass:: {full}", "   :members:", "   :show-inheritance:"]
    if callable(value) and hasattr(value, "__code__"):
        return [f".. autofunction:: {full}"]
    about = data_doc(module.__name__.partition(".")[0], name) or type(value).__doc__ or ""
    shown = "" if name.startswith("__") else f"   :value: {value!r}"
    if " object at 0x" in shown or len(shown) > 90 or not isinstance(value, str | int | tuple):
        shown = ""
    body = textwrap.indent(inspect.cleandoc(about).partition("\n\n")[0], "   ")
    return [f".. py:data:: {full}", *filter(None, [shown]), "", body]


def undocumented(module: ModuleType, name: str) -> list[str]:
    """List a public name and its members if they lack a docstring."""
    value, full = getattr(module, name), f"{module.__name__}.{name}"
    if not isinstance(value, type):
        is_function = callable(value) and hasattr(value, "__code__")
        package = module.__name__.partition(".")[0]
        return [] if (value.__doc__ if is_function else data_doc(package, name)) else [full]
    about = vars(value).get("__doc__") or ""
    missing = [full] if not about or about.startswith(f"{name}(") else []  # generated by dataclass
    members = (inspect.isfunction, inspect.isdatadescriptor, inspect.ismethod)
    return missing + [
        f"{full}.{member}"
        for member in vars(value)
        if not member.startswith("_")
        and any(is_one(getattr(value, member)) for is_one in members)
        and not inspect.getdoc(getattr(value, member))
    ]


def data_doc(package: str, name: str) -> str:
    """Find the docstring below a module-level name, wherever in the package it is defined."""
    from sphinx.pycode import ModuleAnalyzer

    if name == "__version__":
        return "The version of timmscope."
    for loaded in sorted(sys.modules):
        if loaded.split(".")[0].startswith(package.split("_")[0]) and sys.modules[loaded]:
            try:
                found = ModuleAnalyzer.for_module(loaded).find_attr_docs()
            except Exception:
                continue
            if ("", name) in found:
                return "\n".join(found["", name])
    return ""


def errors_page() -> str:
    """Make the page of errors: their tree, drawn from the classes, and their attributes."""
    root = timmscope.TimmscopeError
    lines = [
        "# Errors",
        "",
        "These are all errors that timmscope raises on purpose. A message is one line that says "
        "what is wrong, where, what was expected and what to do next. The facts are attributes of "
        "the error.",
        "",
        "```text",
        *tree(root),
        "```",
        "",
    ]
    for error in [root, *descendants(root)]:
        lines += ["```{eval-rst}", f".. autoexception:: timmscope.{error.__name__}"]
        lines += ["   :show-inheritance:", "```", ""]
    return "\n".join(lines)


def descendants(error: type[Exception]) -> Iterator[type[Exception]]:
    """Yield the public errors below one, depth first."""
    for child in error.__subclasses__():
        if child.__name__ in timmscope_registry.__all__:
            yield child
            yield from descendants(child)


def tree(error: type[Exception], indent: str = "") -> list[str]:
    """Draw the class and its public descendants as an indented tree."""
    children = [c for c in error.__subclasses__() if c.__name__ in timmscope_registry.__all__]
    lines = [error.__name__] if not indent else []
    for child in children:
        last = child is children[-1]
        summary = re.split(r"[.:;]", inspect.getdoc(child) or "")[0]
        short = textwrap.shorten(summary, 64, placeholder=" …")
        branch = f"{indent.replace('root', '')}{'└──' if last else '├──'} {child.__name__}"
        lines.append(f"{branch:<23} {short}")
        deeper = indent.replace("root", "") + ("    " if last else "│   ")
        lines += tree(child, deeper)
    return lines


# Text


def markdown(docstring: str) -> str:
    """Convert a docstring to Markdown: `::` blocks become code, argument sections are omitted."""
    text = sections(docstring)[""]
    lines: list[str] = []
    block: list[str] | None = None
    for line in [*text.splitlines(), "end"]:
        if block is not None:
            if not line.strip() or line.startswith("    "):
                block.append(line)
                continue
            code = textwrap.dedent("\n".join(block)).strip("\n")
            language = "toml" if code.startswith("[project") else "python"
            lines += ["", f"```{language}", code, "```", ""]
            block = None
        if line.endswith("::"):
            lines.append(line[:-1])
            block = []
        else:
            lines.append(line)
    return single_backticks("\n".join(lines[:-1])).strip()


def single_backticks(text: str) -> str:
    """Convert reStructuredText literals to Markdown literals; fences stay."""
    return re.sub(r"(?<!`)``(?!`)", "`", text)


def toctree(pages: Iterable[str]) -> list[str]:
    """Make a hidden table of contents."""
    return ["```{toctree}", ":hidden:", "", *pages, "```"]
