"""From a technique's fields to command-line flags: nothing is written twice."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from cyclopts import Group, Parameter
from pydantic.fields import FieldInfo

from timmscope.cli.text import plain_text
from timmscope.techniques.base import blamed
from timmscope_registry import PluginError
from timmscope_registry.plugin_faults import fault

if TYPE_CHECKING:
    from timmscope.techniques import Technique

GLOBAL_FLAGS = ("block", "plugin", "debug", "help")
"""Taken out of the command line before a technique sees it."""


def command(
    function: Callable[..., None], technique: type[Technique], title: str
) -> Callable[..., None]:
    """Return a command with the flags of `function` and those of the technique's fields.

    `function` is called with the technique, made from its flags, and with its own arguments; its
    first parameter, the technique, is no flag.

    Raises:
        PluginError: a field has the name of one of the function's own or of the global flags, or
            of another field but for its case.
    """
    own = list(inspect.signature(function).parameters.values())[1:]
    hints = typing.get_type_hints(function, include_extras=True)
    taken = {f"--{name}" for name in GLOBAL_FLAGS}
    taken.update(flag for parameter in own for flag in _flags(parameter.name, hints))
    clash = []
    for name in technique.model_fields:
        if (flag := _flag(name)) in taken:
            clash.append(flag)
        taken.add(flag)
    if clash:
        did = f"cannot be run from the command line: it has fields named like {', '.join(clash)}"
        raise PluginError(fault(blamed(technique), did, advice="its authors should rename them"))
    group = Group(f"Parameters of {title}", sort_key=2)
    fields = [_parameter(name, info, group) for name, info in technique.model_fields.items()]
    signature = inspect.Signature(
        [*(parameter.replace(annotation=hints[parameter.name]) for parameter in own), *fields]
    )

    def run(*positional: Any, **flags: Any) -> None:
        chosen = {name: flags.pop(name) for name in technique.model_fields if name in flags}
        function(technique(**chosen), *positional, **flags)

    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    run.__doc__ = _document(function, technique)
    return run


def _flag(name: str) -> str:
    return f"--{name.lower().replace('_', '-')}"


def _flags(name: str, hints: Mapping[str, Any]) -> set[str]:
    """A parameter's own name as a flag, and the flags that are written for it."""
    found = {_flag(name)}
    for note in getattr(hints[name], "__metadata__", ()):
        if isinstance(note, Parameter):
            found.update(note.name or ())
    return found


def _parameter(name: str, info: FieldInfo, group: Group) -> inspect.Parameter:
    text = " ".join((info.description or "").replace("`", "").split())
    limits = bounds(info)
    default: Any = inspect.Parameter.empty
    if not info.is_required():
        default = info.get_default(call_default_factory=True, validated_data={})
    shown: bool | Callable[[Any], str] = not any(
        default is nothing for nothing in (None, False, inspect.Parameter.empty)
    )
    if isinstance(default, tuple | list):
        shown = _words if default else False
    flag = Parameter(
        help=" ".join(filter(None, [text, f"[{limits}]" if limits else ""])),
        group=group,
        show_default=shown,
        negative=_flag(f"no_{name}") if default is True else "",
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[plain(info.annotation), flag],
    )


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


def _document(function: Callable[..., None], technique: type[Technique]) -> str:
    """The technique's description over the help of the function's own parameters."""
    about = inspect.cleandoc(technique.__doc__ or "")
    own = inspect.cleandoc(function.__doc__ or "")
    _, marker, parameters = own.partition("Parameters\n---")
    about = about.partition("\nArgs:")[0].partition("\nAttributes:")[0].strip()
    return plain_text(f"{about}\n\n{marker}{parameters}")
