"""`Parameters` is a frozen set of parameters with help texts, whose errors are one line.

The declaration of its fields gives a class its Python signature, command-line flags, docs page,
text form and the JSON in results.
"""

from __future__ import annotations

import json
import re
import shlex
from abc import ABC
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.errors import PydanticSchemaGenerationError

from timmscope.parameters.names import Digests, comparable, meanings, technique_defaults
from timmscope_registry import (
    Entry,
    ParameterError,
    TechniqueError,
    TechniqueSpec,
    get_registry,
    nearest,
)
from timmscope_registry.contributions import culprit, entry_of
from timmscope_registry.plugin_faults import brief, fault, one_line

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass as _ModelType
else:
    _ModelType = type(BaseModel)


class _ParametersType(_ModelType):
    """Says in one line what is wrong with a technique: a field's type, or two base classes."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: Any, **kwargs: Any) -> Any:
        known = ((getattr(each, "base", ""), each.__name__) for each in bases)
        named = {base: kind for base, kind in known if base}
        if len(named) > 1:
            raise TypeError(
                f"{name} derives from {' and '.join(named.values())}: a technique has one base, "
                "so register a technique for each"
            )
        try:
            return super().__new__(cls, name, bases, namespace, **kwargs)
        except PydanticSchemaGenerationError as error:
            kind = re.sub(
                r".*for (?:<class ')?(.*?)(?:'>)?\. Set .*", r"\1", str(error), flags=re.S
            )
            short = kind.rpartition(".")[2]
            fields = [
                field
                for field, hint in namespace.get("__annotations__", {}).items()
                if short in str(hint)
            ]
            raise TypeError(
                f"field {', '.join(fields)} of technique {name} has the type {short}, which no "
                "parameter can have: use numbers, text, booleans, Literal, tuples, LayerName or "
                "another name, such as ModelName"
            ) from error


class Parameters(BaseModel, ABC, metaclass=_ParametersType):
    """Base class of what has parameters: its fields are the parameters.

    Raises:
        ParameterError: a parameter is unknown, missing, malformed or out of range.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        ser_json_inf_nan="strings",
        populate_by_name=True,
    )

    family: ClassVar[str] = ""
    """Name of the family; set by its base class."""
    base: ClassVar[str] = ""
    """Name of the base class in `TechniqueSpec.base`; set by the base class."""

    if not TYPE_CHECKING:  # a type checker uses the signature made from the fields

        def __init__(self, **parameters: Any) -> None:
            try:
                super().__init__(**parameters)
            except ValidationError as error:
                raise _as_parameter_error(type(self), error) from None

    @model_validator(mode="before")
    @classmethod
    def _default_techniques(cls, given: Any) -> Any:
        """Make techniques of texts that are defaults; pydantic checks no defaults."""
        defaults = technique_defaults(cls)
        return {**defaults, **given} if defaults and isinstance(given, dict) else given

    @classmethod
    def technique_id(cls) -> str:
        """Return the registered id, `distribution:name`, or the class's name if unregistered."""
        entry = registered_entry(cls)
        return entry.id if entry is not None else cls.__qualname__

    @classmethod
    def title(cls) -> str:
        """Return a short name for pictures and tables."""
        return cls.technique_id().rpartition(":")[2]

    def text(self) -> str:
        """Return the registered id and all parameters, as in `timmscope:jpeg quality=75`.

        `from_text` makes an equal object of it, except for parameters that are live objects.

        Raises:
            TechniqueError: JSON cannot hold one of the parameters.
        """
        return self._recorded_text({})

    def _recorded_text(self, digests: Digests) -> str:
        """Return `text()` with digests of what parameters name.

        Args:
            digests: of what a call has opened.

        Raises:
            TechniqueError: JSON cannot hold one of the parameters.
        """
        given = (f"{name}={_as_text(value)}" for name, value in self._recorded(digests).items())
        return " ".join([self.technique_id(), *(shlex.quote(setting) for setting in given)])

    def __eq__(self, other: object) -> bool:
        """Whether class and parameters are equal; a live object equals only itself."""
        if type(self) is not type(other):
            return NotImplemented
        assert isinstance(other, Parameters)
        return self._comparable() == other._comparable()

    def __hash__(self) -> int:
        """Hash of class and parameters."""
        return hash((type(self), *self._comparable()))

    def _comparable(self) -> list[Any]:
        named = meanings(type(self))
        return [comparable(value) if name in named else value for name, value in self]

    def _recorded(self, digests: Digests | None = None) -> dict[str, Any]:
        """Return the parameters as JSON values.

        Args:
            digests: of what a call has opened for parameters that name something.

        Raises:
            TechniqueError: JSON cannot hold one of them.
        """
        try:
            return self.model_dump(mode="json", context=dict(digests or {}))
        except Exception as error:  # a plugin's own serialiser may raise anything
            did = f"has parameters that cannot be recorded as JSON: {one_line(error)}"
            raise technique_error(self, did) from error


def technique_error(
    technique: Parameters, did: str, *, expected: str = "", advice: str | None = None
) -> TechniqueError:
    """Return an error about what a technique did, which names the technique and its plugin."""
    return TechniqueError(fault(origin_of(technique), did, expected=expected, advice=advice))


def origin_of(technique: Parameters | type[Parameters]) -> Entry[TechniqueSpec] | str:
    """Return what an error names as its origin: another plugin's contribution, or the class."""
    kind = technique if isinstance(technique, type) else type(technique)
    return culprit(kind, get_registry().techniques(), f"technique {kind.title()}")


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def registered_entry(kind: type[Parameters]) -> Entry[TechniqueSpec] | None:
    """Return a class's entry in the registry; None if it is unregistered."""
    return entry_of(kind, get_registry().techniques())


def _as_parameter_error(kind: type[Parameters], error: ValidationError) -> ParameterError:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"]) or "parameters"
    fields = kind.model_fields
    if first["type"] == "extra_forbidden":
        close = nearest(name, fields)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return ParameterError(
            f"{kind.title()} has no parameter {name!r}{hint} "
            f"(it has: {', '.join(fields) or 'none'})",
            parameter=name,
        )
    given = first.get("input")
    shown = repr(given)
    if "\n" in shown:
        shown = brief(given)  # a live object, such as a module
    reason = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return ParameterError(f"parameters of {kind.title()} do not fit together: {reason}")
    return ParameterError(
        f"parameter {name!r} of {kind.title()} is {shown}: {reason}", parameter=name
    )
