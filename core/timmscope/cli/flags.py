"""From a technique's fields to command-line flags: nothing is written twice."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from cyclopts import Group, Parameter
from pydantic.fields import FieldInfo

from timmscope.techniques.base import blamed
from timmscope_registry import PluginError
from timmscope_registry.plugin_faults import fault

if TYPE_CHECKING:
    from timmscope.techniques import Technique

GLOBAL_FLAGS = ("block", "plugin", "debug", "help")
"""Taken out of the command line before a technique sees it."""


def of_fields(
    technique: type[Technique], title: str, own: Iterable[inspect.Parameter]
) -> list[inspect.Parameter]:
    """The flags of a technique's fields.

    Args:
        technique: whose fields they are.
        title: what the technique is called.
        own: what else the command takes.

    Raises:
        PluginError: a field has the name of what else the command takes, of one of the global
            flags, or of another field but for its case.
    """
    taken = {f"--{name}" for name in GLOBAL_FLAGS}
    for other in own:
        taken.add(flag(other.name))
        for note in getattr(other.annotation, "__metadata__", ()):
            taken.update(note.name or ())
    clash = []
    for name in technique.model_fields:
        if flag(name) in taken:
            clash.append(flag(name))
        taken.add(flag(name))
    if clash:
        did = f"cannot be run from the command line: it has fields named like {', '.join(clash)}"
        raise PluginError(fault(blamed(technique), did, advice="its authors should rename them"))
    group = Group(f"Parameters of {title}", sort_key=2)
    return [_of_field(name, info, group) for name, info in technique.model_fields.items()]


def _of_field(name: str, info: FieldInfo, group: Group) -> inspect.Parameter:
    limits = bounds(info)
    default: Any = inspect.Parameter.empty
    if not info.is_required():
        default = info.get_default(call_default_factory=True, validated_data={})
    text = " ".join((info.description or "").replace("`", "").split())
    text = " ".join(filter(None, [text, f"[{limits}]" if limits else ""]))
    return parameter(name, plain(info.annotation), default, text, group=group)


def parameter(name: str, kind: Any, default: Any, text: str, **more: Any) -> inspect.Parameter:
    """A flag of a type, with its help; `more` is for cyclopts."""
    shown: bool | Callable[[Any], str] = not any(
        default is nothing for nothing in (None, False, inspect.Parameter.empty)
    )
    if isinstance(default, tuple | list):
        shown = _words if default else False
    negative = flag(f"no_{name}") if default is True else ""
    note = Parameter(help=text, show_default=shown, negative=negative, **more)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, note]
    )


def flag(name: str) -> str:
    """The flag of a field: ``"--step-size"``."""
    return f"--{name.lower().replace('_', '-')}"


def usage(program: str, function: Callable[..., None]) -> str:
    """The line that help begins with: the program, then what it takes in order."""
    words = [program]
    for parameter in inspect.signature(function).parameters.values():
        name = parameter.name.upper()
        if parameter.kind is parameter.VAR_POSITIONAL:
            words.append(f"[{name}...]")
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            words.append(name if parameter.default is parameter.empty else f"[{name}]")
    return f"Usage: {' '.join(words)} [OPTIONS]"


def _words(values: Iterable[object]) -> str:
    return " ".join(map(str, values))


def plain(annotation: Any) -> Any:
    """The type without pydantic's own annotations, which mean nothing to a command line."""
    if get_origin(annotation) is Annotated:
        return plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return Union[tuple(plain(part) for part in get_args(annotation))]  # noqa: UP007
    return annotation


def bounds(info: FieldInfo) -> str:
    """The limits of a number, in words: ``"0 to 1"``, ``"at least 1"``, ``"above 0"``."""
    found: dict[str, Any] = {}
    for item in _metadata(info):
        for name in ("ge", "gt", "le", "lt", "multiple_of"):
            if getattr(item, name, None) is not None:
                found[name] = getattr(item, name)
    parts = []
    if "ge" in found and "le" in found:
        parts.append(f"{found['ge']} to {found['le']}")
    else:
        words: Mapping[str, str] = {
            "ge": "at least",
            "gt": "above",
            "le": "at most",
            "lt": "below",
        }
        parts += [f"{word} {found[name]}" for name, word in words.items() if name in found]
    if "multiple_of" in found:
        parts.append(f"a multiple of {found['multiple_of']}")
    return ", ".join(parts)


def _metadata(info: FieldInfo) -> list[Any]:
    """Constraints of the field and of the parts of its type (``PositiveInt | None``)."""
    found = list(info.metadata)

    def visit(annotation: Any) -> None:
        if get_origin(annotation) is Annotated:
            found.extend(get_args(annotation)[1:])
            visit(get_args(annotation)[0])
        elif get_origin(annotation) in (Union, UnionType):
            for part in get_args(annotation):
                visit(part)

    visit(info.annotation)
    return found
