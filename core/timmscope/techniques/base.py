"""`Technique` is the base class of all techniques: a frozen set of parameters with help texts.

The declaration of its fields gives a technique's Python signature, command-line flags, docs page
and the JSON in its results.
"""

from __future__ import annotations

import inspect
import re
from abc import ABC
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from timmscope.models import HookedModel
from timmscope.progress import track
from timmscope.results.result import Provenance, to_json
from timmscope_registry import (
    Entry,
    ModelError,
    ParameterError,
    TechniqueError,
    TechniqueSpec,
    get_registry,
    nearest,
)
from timmscope_registry.contributions import culprit, entry_of
from timmscope_registry.plugin_faults import fault, one_line

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass as _ModelType

    from timmscope.store.manifest import ModelRecord
else:
    _ModelType = type(BaseModel)

LayerName = Annotated[str, Field(json_schema_extra={"kind": "layer"}, min_length=1)]
"""Name of a layer; the command line completes it and checks it against the model."""

T = TypeVar("T")


class _TechniqueType(_ModelType):
    """Says in one line which field of a technique has a type that no parameter can have."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: Any, **kwargs: Any) -> Any:
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
                "parameter can have: use numbers, text, booleans, Literal, tuples or LayerName"
            ) from error


class Technique(BaseModel, ABC, metaclass=_TechniqueType):
    """Base class of all techniques: parameters are fields, and a call is `technique(model, …)`.

    Subclass the base class of a family, not this class.
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

    @classmethod
    def technique_id(cls) -> str:
        """Return the registered id, `distribution:name`, or the class's name if unregistered."""
        entry = _entry(cls)
        return entry.id if entry is not None else cls.__qualname__

    @classmethod
    def takes_argument(cls, parameter: inspect.Parameter) -> inspect.Parameter | None:
        """Return an argument of the base's call as this class takes it; None if it does not."""
        return parameter

    @classmethod
    def title(cls) -> str:
        """Return a short name for pictures and tables."""
        return cls.technique_id().rpartition(":")[2]

    def track(
        self, steps: Iterable[T], description: str = "", total: int | None = None
    ) -> Iterable[T]:
        """Iterate and report progress; use it for every long loop."""
        return track(steps, description or self.title(), total=total)

    def _recorded(self) -> dict[str, Any]:
        """Return the parameters as JSON values, before the technique's method may change them.

        Raises:
            TechniqueError: JSON cannot hold one of them.
        """
        try:
            return self.model_dump(mode="json")
        except Exception as error:  # a plugin's own serialiser may raise anything
            did = f"has parameters that cannot be recorded as JSON: {one_line(error)}"
            raise technique_error(self, did) from error

    def _provenance(
        self, model: HookedModel | ModelRecord | None, seed: int, **facts: Any
    ) -> Provenance:
        return Provenance.now(
            technique=self.technique_id(),
            family=self.family,
            parameters=self._recorded(),
            model=model.id if model is not None else None,
            weights_sha256=model.weights_sha256 if model is not None else None,
            seed=seed,
            call=to_json(facts),
        )


def technique_error(
    technique: Technique, did: str, *, expected: str = "", advice: str | None = None
) -> TechniqueError:
    """Return an error about what a technique did, which names the technique and its plugin."""
    return TechniqueError(fault(origin_of(technique), did, expected=expected, advice=advice))


def origin_of(technique: Technique | type[Technique]) -> Entry[TechniqueSpec] | str:
    """Return what an error names as its origin: another plugin's contribution, or the class."""
    kind = technique if isinstance(technique, type) else type(technique)
    return culprit(kind, get_registry().techniques(), f"technique {kind.title()}")


def require_model(model: HookedModel) -> None:
    """Refuse anything but a `HookedModel`.

    Raises:
        ModelError: it is something else.
    """
    if not isinstance(model, HookedModel):
        raise ModelError(
            f"a technique takes a HookedModel, not {type(model).__name__}: "
            "use load_model(...) or HookedModel(module)"
        )


def _entry(technique: type[Technique]) -> Entry[TechniqueSpec] | None:
    """Return a technique's entry in the registry; None if it is unregistered."""
    return entry_of(technique, get_registry().techniques())


def _as_parameter_error(technique: type[Technique], error: ValidationError) -> ParameterError:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"]) or "parameters"
    fields = technique.model_fields
    if first["type"] == "extra_forbidden":
        close = nearest(name, fields)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return ParameterError(
            f"{technique.title()} has no parameter {name!r}{hint} "
            f"(it has: {', '.join(fields) or 'none'})",
            parameter=name,
        )
    given = first.get("input")
    reason = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return ParameterError(f"parameters of {technique.title()} do not fit together: {reason}")
    return ParameterError(
        f"parameter {name!r} of {technique.title()} is {given!r}: {reason}", parameter=name
    )
