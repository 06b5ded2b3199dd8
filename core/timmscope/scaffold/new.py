"""Writes the package of a new plugin: one example that works, its tests, and all around it."""

from __future__ import annotations

import keyword
import re
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from timmscope.scaffold.kinds import KINDS
from timmscope_registry import ParameterError, get_registry

TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def new_plugin(name: str, kind: str, folder: Path | None = None) -> list[Path]:
    """Write the package of a new plugin.

    Args:
        name: of the technique, collector, scheme or engine: lower case with hyphens.
        kind: a family of techniques, or `collector`, `model-source`, `image-source`,
            `index-backend`.
        folder: where; by default a folder of the distribution's name, `timmscope-NAME`.

    Returns:
        The files written.

    Raises:
        ParameterError: no such kind, a name that no plugin can have, or a folder that is not empty.
    """
    if kind not in KINDS:
        raise ParameterError(
            f"there is no kind of plugin {kind!r}: choose one of {', '.join(KINDS)}",
            parameter="family",
        )
    bare = name.removeprefix("timmscope-")
    if not _NAME.fullmatch(bare):
        raise ParameterError(
            f"{name!r} cannot be a plugin's name: use lower case letters, digits and single "
            "hyphens, as in edge-energy",
            parameter="name",
        )
    context = _context(bare, kind)
    if taken := _taken(bare, kind, context):
        raise ParameterError(
            f"{name!r} cannot be a plugin's name: {taken}; choose another", parameter="name"
        )
    root = folder or Path(context["distribution"])
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ParameterError(f"{root} is there already: name another folder", parameter="output")
    package, slug = context["package"], context["slug"]
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        ".github/workflows/test.yml": "test.yml",
        f"src/{package}/plugin.py": "plugin.py",
        f"src/{package}/{slug}.py": f"{kind}.py",
        f"tests/test_{slug}.py": "test.py",
    }
    written = []
    texts = {path: _render(template, context) for path, template in files.items()}
    texts[f"src/{package}/__init__.py"] = f'"""{context["summary"]}"""\n'
    texts[f"src/{package}/py.typed"] = ""
    for path, text in texts.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        written.append(file)
    return written


def _taken(name: str, kind: str, context: dict[str, Any]) -> str | None:
    """What else has a name that the package would need; None where nothing has."""
    slug, package = context["slug"], context["package"]
    if keyword.iskeyword(slug) or slug == "plugin":
        return f"no module of the package can be called {slug}"
    if keyword.iskeyword(context["cls"]):
        return f"no class can be called {context['cls']}"
    for entry in get_registry().entries():
        if entry.spec.name == name:
            return f"the {entry.kind} {entry.id} has it"
    if find_spec(package) is not None:
        return f"there is a package {package} already"
    imports = rf"^(from .* )?import .*\b{context['cls']}\b"
    if re.search(imports, _render(f"{kind}.py", context), re.MULTILINE):
        return f"its class would be called {context['cls']}, as one that the example imports"
    return None


def _context(name: str, kind: str) -> dict[str, Any]:
    about = KINDS[kind]
    slug = name.replace("-", "_")
    words = {
        "name": name,
        "slug": slug,
        "cls": "".join(part.capitalize() for part in name.split("-")),
        "package": f"timmscope_{slug}",
        "distribution": f"timmscope-{name}",
    }

    def filled(text: str) -> str:
        return text.format(**words)

    implementation = filled(about.implementation)
    fields = [
        f'{about.named}="{name}"',
        f'summary="{about.summary}"',
        f'impl="{words["package"]}.{slug}:{implementation}"',
        *map(filled, about.more),
    ]
    return {
        **words,
        "version": version("timmscope"),
        "summary": about.summary,
        "spec": about.spec,
        "hook": about.hook,
        "fields": fields,
        "command": filled(about.command),
        "conformance": ", ".join([f'"{name}"', *about.arguments]),
        "test_imports": "\n".join(map(filled, about.imports)),
        "test": filled(about.test),
    }


def _render(template: str, context: dict[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(  # Python and TOML: nothing to escape
        loader=loader, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template(f"{template}.j2").render(context)
