"""Every public name with its signature; `python -m tests.packaging.public_api` writes them down.

What changes here is what users notice: see "Stability" in the docs before changing it.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

PACKAGES = (
    "timmscope",
    "timmscope.drawing",
    "timmscope_registry",
    "timmscope_registry.hooks",
    "timmscope.testing",
    "timmscope_attribution",
    "timmscope_synthesis",
    "timmscope_attack",
    "timmscope_defence",
    "timmscope_style",
    "timmscope_representation",
)
FILE = Path(__file__).with_name("public_api.txt")


def listing() -> str:
    """All names of the public packages, with signatures of what can be called and its methods."""
    lines = []
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in sorted(module.__all__):
            value = getattr(module, name)
            lines.append(f"{package}.{name}{_signature(value)}")
            if inspect.isclass(value):
                lines += [f"    .{part}" for part in _members(value)]
    return "\n".join(lines) + "\n"


def _members(kind: type) -> list[str]:
    found = []
    for name, value in sorted(vars(kind).items()):
        if name.startswith("_") and name != "__call__":
            continue
        if isinstance(value, property):
            found.append(name)
        elif inspect.isfunction(value):
            found.append(name + _signature(value))
        elif isinstance(value, classmethod | staticmethod):
            found.append(name + _signature(value.__func__))
    return found


def _signature(value: object) -> str:
    """Names and defaults of the parameters; types are the type checker's business."""
    if not callable(value):
        return ""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return "(…)"
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    words, bare = [], False
    for each in parameters:
        if each.kind is inspect.Parameter.KEYWORD_ONLY and not bare:
            bare = "*" in (word[:1] for word in words)
            words += [] if bare else ["*"]
            bare = True
        word = stars.get(each.kind, "") + each.name
        words.append(word if each.default is inspect.Parameter.empty else f"{word}={_short(each)}")
    return f"({', '.join(words)})"


def _short(parameter: inspect.Parameter) -> str:
    text = repr(parameter.default)
    return "…" if len(text) > 30 or " at 0x" in text or "<" in text else text


if __name__ == "__main__":
    FILE.write_text(listing(), encoding="utf-8")
