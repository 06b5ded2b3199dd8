"""`Names` marks a parameter whose text names something that a call opens, such as a model.

The value is the text, or the live object itself. Nothing is opened when parameters are made or
loaded; a technique opens what they name during its call. In records a live object is its id, and
what a call has opened is followed by a digest, as in `random:resnet18#9f86d081884c7d65`.
"""

from __future__ import annotations

import os
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, SerializationInfo
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticUndefined, core_schema

from timmscope_registry import TimmscopeError
from timmscope_registry.plugin_faults import brief

if TYPE_CHECKING:
    from timmscope.parameters.base import Parameters

DIGITS = 16
"""Digits of a SHA-256 in a text."""
_DIGEST = re.compile(rf"#(?P<digest>[0-9a-f]{{{DIGITS}}})$")
_EXAMPLES = {
    "model": "a model, as in 'timm:resnet18'",
    "image set": "images, as in a folder",
    "image": "an image file",
    "store": "the folder of a store",
    "weights": "the folder of a training",
    "technique": "a technique, as in 'NAME parameter=value'",
}

Digests = Mapping[tuple[str, object], str]
"""First digits of the SHA-256 of what a call has opened, by kind and `identity`."""


@dataclass(frozen=True)
class Names:
    """Marks the type of a parameter that names something: `Annotated[str | Store, Names("store")]`.

    Attributes:
        kind: what is named: a `model`, `image set`, `image`, `store`, `weights` or `technique`.
    """

    kind: str

    def __get_pydantic_core_schema__(self, source: Any, _: GetCoreSchemaHandler) -> CoreSchema:
        """Take texts and the live objects of the type."""
        meant = Meant.of(self.kind, source)
        return core_schema.no_info_plain_validator_function(
            meant.checked,
            serialization=core_schema.plain_serializer_function_ser_schema(
                meant.recorded, info_arg=True, when_used="json"
            ),
            metadata={"timmscope_meant": meant},
        )

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describe the parameter for a form: text of a kind, and the base of a technique."""
        meant: Meant = core["metadata"]["timmscope_meant"]
        more = {"base": meant.base.base} if self.kind == "technique" else {}
        return {"type": "string", "minLength": 1, "kind": self.kind, **more}


class Meant(NamedTuple):
    """What a parameter may name: live objects of some types; weights or a technique of a class."""

    kind: str
    types: tuple[type, ...]
    base: Any

    @classmethod
    def of(cls, kind: str, source: Any) -> Meant:
        """Read the type of a parameter.

        Raises:
            TypeError: it does not say of which base a technique is.
        """
        parts = get_args(source) or (source,)
        live = tuple(get_origin(part) or part for part in parts if not isinstance(part, TypeVar))
        live = tuple(part for part in live if isinstance(part, type) and part is not str)
        base: Any = None
        if kind == "technique":
            base = live[0] if live else None
            if base is None or not base.base:
                raise TypeError("write of which base it is, as in TechniqueName[AttackTechnique]")
        if kind == "weights":
            inside = [each for part in parts for each in get_args(part)]
            base = next(
                (each for each in inside if isinstance(each, type) and each is not str), None
            )
        return cls(kind, live, base)

    @property
    def of_what(self) -> str:
        """Base of a technique, or the training of weights, in words; empty for other kinds."""
        if self.kind == "technique":
            return f"base {self.base.base}"
        if self.kind == "weights" and self.base is not None and not self.base.__abstractmethods__:
            return f"of {self.base.title()}"
        return ""

    def checked(self, value: object) -> object:
        """Return a value as it is kept: a text, a technique or another live object.

        Raises:
            ValueError: it is something else, or there is no technique of this text.
        """
        if isinstance(value, os.PathLike) and os.PathLike in self.types:
            value = os.fspath(value)
        if isinstance(value, str) and value.strip() and "\0" not in value:
            return self._technique(value) if self.kind == "technique" else value
        if isinstance(value, self.types) and not isinstance(value, type | bytes | os.PathLike):
            return value
        names = [each.__name__ for each in self.types if each is not os.PathLike]
        objects = " or ".join(map(_with_article, names))
        raise ValueError(f"expected {_EXAMPLES[self.kind]}, or in Python {objects}")

    def _technique(self, text: str) -> object:
        from timmscope.parameters.lookup import from_text

        purpose = f"expected {_with_article(self.base.base)} technique"
        try:
            return from_text(text, self.base, purpose=purpose, parameter="")
        except TimmscopeError as error:
            raise ValueError(str(error)) from error

    def recorded(self, value: Any, info: SerializationInfo) -> str:
        """Return a value as text, with the digest of what a call has opened for it.

        Args:
            value: the value.
            info: its context holds the digests of the call.
        """
        digests: Digests = info.context or {}
        if self.kind == "technique":
            text: str = value._recorded_text(digests)
            return text
        text = value if isinstance(value, str) else live_id(value)
        digest = digests.get((self.kind, identity(value)))
        return f"{split_digest(text)[0]}#{digest}" if digest else text


def _with_article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def split_digest(text: str) -> tuple[str, str]:
    """Split the text of a record into a name and digits of its SHA-256; empty without them."""
    found = _DIGEST.search(text)
    return (text, "") if found is None else (text[: found.start()], found["digest"])


def identity(value: object) -> object:
    """Return what makes two values of parameters the same: the text, or the object itself."""
    return value if isinstance(value, str) else id(value)


def live_id(value: Any) -> str:
    """Return the id of a live object in records: its own, its place, or its class."""
    for name in ("id", "location", "path", "folder"):
        known = getattr(value, name, None)
        if isinstance(known, str | os.PathLike) and str(known):
            return str(known)
    return f"module:{type(value).__name__}" if hasattr(value, "state_dict") else brief(value)


class NamedValue(NamedTuple):
    """A value of a parameter that names something.

    Attributes:
        parameter: name of the parameter; `surrogates[1]` if there are several values, and
            `attack.surrogate` for a parameter of a technique that is named itself.
        meant: what it may name.
        value: a text or a live object.
    """

    parameter: str
    meant: Meant
    value: Any


def meant_by(info: FieldInfo) -> Meant | None:
    """Return what the values of a parameter name; None if they name nothing."""
    for mark in info.metadata:
        if isinstance(mark, Names):
            return Meant.of(mark.kind, info.annotation)
    return _meant_in(info.annotation)


def _meant_in(annotation: Any) -> Meant | None:
    if get_origin(annotation) is Annotated:
        inside, *marks = get_args(annotation)
        mark = next((mark for mark in marks if isinstance(mark, Names)), None)
        return _meant_in(inside) if mark is None else Meant.of(mark.kind, inside)
    if get_origin(annotation) in (Union, types.UnionType, tuple):
        return next(filter(None, map(_meant_in, get_args(annotation))), None)
    return None


def meanings(kind: type[Parameters]) -> dict[str, Meant]:
    """Return what the parameters of a class name, by parameter; others are left out."""
    return _meanings(kind) if kind.__pydantic_complete__ else _meanings.__wrapped__(kind)


@lru_cache(1024)
def _meanings(kind: type[Parameters]) -> dict[str, Meant]:
    found = {name: meant_by(info) for name, info in kind.model_fields.items()}
    return {name: meant for name, meant in found.items() if meant is not None}


def named_values(given: Parameters) -> Iterator[NamedValue]:
    """Yield what the parameters of an object name, and what those of techniques among it name."""
    for name, meant in meanings(type(given)).items():
        value = getattr(given, name)
        several = isinstance(value, tuple)
        for number, each in enumerate(value if several else [value]):
            if each is None:
                continue
            parameter = f"{name}[{number}]" if several else name
            yield NamedValue(parameter, meant, each)
            if meant.kind == "technique":
                for inner in named_values(each):
                    yield inner._replace(parameter=f"{parameter}.{inner.parameter}")


def technique_defaults(kind: type[Parameters]) -> dict[str, Any]:
    """Return the defaults of parameters that name techniques, by parameter."""
    return {
        name: kind.model_fields[name].get_default()
        for name, meant in meanings(kind).items()
        if meant.kind == "technique"
        and kind.model_fields[name].default not in (None, PydanticUndefined)
    }


def comparable(value: object) -> object:
    """Return a value of a parameter for comparisons; a live object equals only itself."""
    if isinstance(value, tuple | list):
        return tuple(map(comparable, value))
    return value if _is_plain(value) else ("live", id(value))


def _is_plain(value: object) -> bool:
    from timmscope.parameters.base import Parameters

    return value is None or isinstance(value, str | int | float | Parameters)
