"""Writes the package of a new plugin: a working example, its tests and the project files."""

from __future__ import annotations

import keyword
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from timmscope.scaffold.kinds import KINDS
from timmscope_registry import ParameterError, get_registry
from timmscope_registry.versions import __version__

TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def new_plugin(name: str, kind: str, folder: Path | None = None) -> list[Path]:
    """Write the package of a new plugin.

    Args:
        name: name of the technique, collector, scheme or engine, in lower case with hyphens.
        kind: the base class of a technique, as in `TechniqueSpec.base`, or `collector`,
            `model-source`, `image-source` or `index-backend`.
        folder: where to write; by default `timmscope-NAME`.

    Returns:
        Paths of the files written.

    Raises:
        ParameterError: there is no such kind, no plugin can have the name, or the folder is not
            empty.
    """
    if kind not in KINDS:
        raise ParameterError(
            f"there is no kind of plugin {kind!r}: choose one of {', '.join(KINDS)}",
            parameter="base",
        )
    bare = name.removeprefix("timmscope-")
    if not _NAME.fullmatch(bare):
        raise ParameterError(
            f"{name!r} cannot be a plugin's name: use lower case letters, digits and single "
            "hyphens, as in edge-energy",
            parameter="name",
        )
    context = _context(bare, kind)
    if conflict := _name_conflict(bare, kind, context):
        raise ParameterError(
            f"{name!r} cannot be a plugin's name: {conflict}; choose another", parameter="name"
        )
    root = folder or Path(context["distribution"])
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ParameterError(f"{root} already exists: name another folder", parameter="output")
    package, slug = context["package"], context["slug"]
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        ".github/workflows/test.yml": "test.yml",
        f"src/{package}/plugin.py": "plugin.py",
        f"src/{package}/{slug}.py": f"{kind}.py",
        f"tests/test_{slug}.py": "test.py",
    }
    texts = {path: _render(template, context) for path, template in files.items()}
    texts[f"src/{package}/__init__.py"] = f'"""{context["summary"]}"""\n'
    texts[f"src/{package}/py.typed"] = ""
    for path, text in texts.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return [root / path for path in texts]


def _name_conflict(name: str, kind: str, context: dict[str, Any]) -> str | None:
    """Say why the package cannot have a name; None if it can."""
    slug, package = context["slug"], context["package"]
    if keyword.iskeyword(slug) or slug == "plugin":
        return f"no module of the package can be called {slug}"
    if keyword.iskeyword(context["cls"]):
        return f"no class can be called {context['cls']}"
    for entry in get_registry().entries():
        if entry.spec.name == name:
            return f"the {entry.kind} {entry.id} has this name"
    if find_spec(package) is not None:
        return f"a package {package} already exists"
    imports = rf"^(from .* )?import .*\b{context['cls']}\b"
    if re.search(imports, _render(f"{kind}.py", context), re.MULTILINE):
        return f"its class would be called {context['cls']}, like one that the example imports"
    return None


def _context(name: str, kind: str) -> dict[str, Any]:
    """Return the values that the templates insert."""
    about = KINDS[kind]
    slug = name.replace("-", "_")
    words = {
        "name": name,
        "slug": slug,
        "cls": "".join(part.capitalize() for part in name.split("-")),
        "package": f"timmscope_{slug}",
        "distribution": f"timmscope-{name}",
    }

    def fill(text: str) -> str:
        return text.format(**words)

    fields = [
        f'{about.name_field}="{name}"',
        f'summary="{about.summary}"',
        f'impl="{words["package"]}.{slug}:{fill(about.implementation)}"',
        *map(fill, about.fields),
    ]
    return {
        **words,
        "version": __version__,
        "summary": about.summary,
        "spec": about.spec,
        "hook": about.hook,
        "fields": fields,
        "command": fill(about.command),
        "conformance": ", ".join([f'"{name}"', *about.arguments]),
        "test_imports": "\n".join(map(fill, about.imports)),
        "test": fill(about.test),
    }


def _render(template: str, context: dict[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(  # no autoescape: the files are Python and TOML
        loader=loader, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template(f"{template}.j2").render(context)
