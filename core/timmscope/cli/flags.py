"""Makes command-line flags from a technique's fields, with their types, defaults and help."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from types import GenericAlias, NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from cyclopts import Group, Parameter
from pydantic.fields import FieldInfo

from timmscope.cli.parameters import real, whole
from timmscope.parameters import Meant, meanings, origin_of
from timmscope_registry import PluginError
from timmscope_registry.plugin_faults import fault, visible

if TYPE_CHECKING:
    from timmscope.techniques import Technique

GLOBAL_FLAGS = ("block", "plugin", "debug", "trust", "help")
"""Flags that are removed from the command line before a technique's command reads it."""


def of_fields(
    technique: type[Technique], title: str, others: Iterable[inspect.Parameter]
) -> list[inspect.Parameter]:
    """Return a keyword parameter for each of a technique's fields.

    Args:
        technique: the technique's class.
        title: the technique's name in help.
        others: the command's other parameters.

    Raises:
        PluginError: a field's flag equals another parameter's, a global one, or another field's.
    """
    taken = {f"--{name}" for name in GLOBAL_FLAGS}
    for other in others:
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
        raise PluginError(fault(origin_of(technique), did, advice="its authors should rename them"))
    group = Group(f"Parameters of {title}", sort_key=2)
    named = meanings(technique)
    return [
        _of_field(name, info, named.get(name), group)
        for name, info in technique.model_fields.items()
    ]


def _of_field(name: str, info: FieldInfo, meant: Meant | None, group: Group) -> inspect.Parameter:
    limits = bounds(info)
    default: Any = inspect.Parameter.empty
    if not info.is_required():
        default = info.get_default(call_default_factory=True, validated_data={})
    text = " ".join((info.description or "").replace("`", "").split())
    text = " ".join(filter(None, [text, f"[{limits}]" if limits else ""]))
    if meant is None:
        return parameter(name, plain(info.annotation), default, text, group=group)
    text = f"{text} [{meant.of_what}]".strip() if meant.of_what else text
    word = _WORDS[meant.kind]
    return parameter(name, _named(info.annotation, word), default, text, group=group)


_CONVERTERS = {frozenset({int}): whole, frozenset({float}): real}
_WORDS = {
    kind: type(word, (str,), {})
    for kind, word in {
        "model": "model",
        "image set": "images",
        "image": "image",
        "store": "store",
        "weights": "weights",
        "technique": "technique",
    }.items()
}
"""Kinds of text; help shows their names as those of a flag's values, as in `--surrogate MODEL`."""


def _named(annotation: Any, word: type) -> Any:
    """Return the type of a flag that names something: a text, none, or several texts."""
    if get_origin(annotation) is tuple:
        return GenericAlias(tuple, (word, ...))
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    several = [_named(part, word) for part in parts if get_origin(part) is tuple]
    kind: Any = several[0] if several else word
    return kind | None if NoneType in parts else kind


def parameter(name: str, kind: Any, default: Any, text: str, **more: Any) -> inspect.Parameter:
    """Return a keyword parameter with its help; `more` is passed to cyclopts."""
    shown: bool | Callable[[Any], str] = not any(
        default is nothing for nothing in (None, False, inspect.Parameter.empty)
    )
    if isinstance(default, tuple | list):
        shown = _words if default else False
    negative = flag(f"no_{name}") if default is True else ""
    types = _types(kind)
    note = Parameter(
        help=visible(text),
        show_default=shown,
        negative=negative,
        converter=_CONVERTERS.get(frozenset(types - {NoneType})),
        allow_leading_hyphen=str in types,
        **more,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, note]
    )


def _types(kind: Any) -> set[Any]:
    """The types that a type is made of: int and None for ``tuple[int, ...] | None``."""
    parts = [part for part in get_args(kind) if part is not ...]
    return set().union(*map(_types, parts)) if parts else {kind}


def flag(name: str) -> str:
    """Return the flag of a field, as in ``"--step-size"``."""
    return f"--{name.lower().replace('_', '-')}"


def usage(program: str, function: Callable[..., None]) -> str:
    """Return the usage line: the program, then its positional parameters."""
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
    """Return the type without pydantic's annotations, which cyclopts does not know."""
    if get_origin(annotation) is Annotated:
        return plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return Union[tuple(plain(part) for part in get_args(annotation))]  # noqa: UP007
    return annotation


def bounds(info: FieldInfo) -> str:
    """Return a number's limits in words: ``"0 to 1"``, ``"at least 1"``, ``"above 0"``."""
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
    """Return the constraints of a field and of its type's parts (``PositiveInt | None``)."""
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
