"""Techniques by name: from what a registry lists to the class, checked."""

from __future__ import annotations

import inspect

from pydantic import BaseModel

from timmscope.techniques import (
    AttackTechnique,
    AttributionTechnique,
    RepresentationTechnique,
    StyleTechnique,
    SynthesisTechnique,
    Technique,
)
from timmscope_registry import PluginError, get_registry
from timmscope_registry.offers import described, subclass

BASES: dict[str, type[Technique]] = {
    base.family: base
    for base in (
        AttributionTechnique,
        SynthesisTechnique,
        AttackTechnique,
        StyleTechnique,
        RepresentationTechnique,
    )
}


def technique(name: str) -> type[Technique]:
    """Return the class of a technique, as in ``technique("grad-cam")(layer="blocks.6")``.

    Args:
        name: short name, or ``"distribution:name"`` where several plugins offer it.

    Raises:
        PluginError: it is unknown or not unique, cannot be imported, or is no technique of its
            family.
    """
    entry = get_registry().technique(name)
    base = BASES[entry.spec.family]
    found = subclass(entry, base)
    if found.__call__ is not base.__call__:
        raise PluginError(
            f"{described(entry)} has a __call__ of its own, which its family's base has to do"
        )
    for method in sorted(base.__abstractmethods__):
        wanted = _parameters(base, method)
        try:
            _signature(found, method).bind(*wanted)
        except TypeError as error:
            raise PluginError(
                f"{described(entry)}: its {method} is called with {', '.join(wanted)}: {error}"
            ) from error
        if inspect.iscoroutinefunction(getattr(found, method)):
            raise PluginError(f"{described(entry)}: its {method} is async; expected a plain method")
    reads = getattr(found, "reads", None)
    if base is RepresentationTechnique and reads not in ("store", "stores", "model"):
        raise PluginError(
            f"{described(entry)} reads {reads!r}; expected 'store', 'stores' or 'model'"
        )
    shadowing = [name for name in found.model_fields if name in _names(base)]
    if shadowing:
        raise PluginError(
            f"{described(entry)} has parameters called like what its family's base has: "
            f"{', '.join(shadowing)}; its authors should rename them"
        )
    return found


def _signature(kind: type, method: str) -> inspect.Signature:
    """As an instance's method is called: without self."""
    signature = inspect.signature(getattr(kind, method))
    if isinstance(inspect.getattr_static(kind, method), staticmethod | classmethod):
        return signature
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _parameters(base: type, method: str) -> list[str]:
    return list(_signature(base, method).parameters)


def _names(base: type[Technique]) -> set[str]:
    return {name for name in dir(base) if not hasattr(BaseModel, name)}
