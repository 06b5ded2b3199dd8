"""Finds techniques by registered name, or by a text such as `occlusion patch_px=56`.

Commands that compare or evaluate take several techniques, so parameters cannot be flags. A text
holds a technique's name, followed by the parameters that differ from their defaults.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Sequence

from pydantic import BaseModel

from timmscope_registry import ParameterError, PluginError, get_registry
from timmscope_registry.contributions import subclass
from timmscope_registry.plugin_faults import fault

from .analysis import ModelTechnique
from .attack import AttackTechnique
from .attribution import AttributionTechnique
from .base import Technique
from .certification import CertificationTechnique
from .store_analysis import StoresTechnique, StoreTechnique
from .style import StyleTechnique
from .synthesis import SynthesisTechnique
from .training import TrainingTechnique

BASES: dict[str, type[Technique]] = {
    base.base: base
    for base in (
        AttributionTechnique,
        SynthesisTechnique,
        AttackTechnique,
        CertificationTechnique,
        StyleTechnique,
        StoreTechnique,
        StoresTechnique,
        ModelTechnique,
        TrainingTechnique,
    )
}
"""The base classes by their names in `TechniqueSpec.base`."""


def technique(name: str) -> type[Technique]:
    """Return the class of a technique, as in ``technique("grad-cam")(layer="blocks.6")``.

    Args:
        name: short name, or ``"distribution:name"`` if several plugins contribute it.

    Raises:
        PluginError: it is unknown or not unique, cannot be imported, or does not follow the
            interface of its base class.
    """
    entry = get_registry().technique(name)
    base = BASES[entry.spec.base]
    found = subclass(entry, base)
    if found.__call__ is not base.__call__:
        raise PluginError(fault(entry, "defines __call__", expected="that of its base class"))
    for method in sorted(base.__abstractmethods__):
        called = _parameters(base, method)
        try:
            _signature(found, method).bind(*called)
        except TypeError as error:
            did = f"cannot have its {method} called with {', '.join(called)}: {error}"
            raise PluginError(fault(entry, did)) from error
        if inspect.iscoroutinefunction(getattr(found, method)):
            raise PluginError(fault(entry, f"has an async {method}", expected="a plain method"))
    taken = {name for name in dir(base) if not hasattr(BaseModel, name)}
    if shadowing := [name for name in found.model_fields if name in taken]:
        did = f"has parameters that hide attributes of its base class: {', '.join(shadowing)}"
        raise PluginError(fault(entry, did, advice="its authors should rename them"))
    return found


def attribution(text: str) -> AttributionTechnique:
    """Return the attribution of a text such as `grad-cam` or `grad-cam layer=blocks.4 relu=no`.

    Raises:
        PluginError: there is no technique of this name.
        ParameterError: it is not an attribution, or a parameter is unknown, malformed or out of
            range.
    """
    try:
        name, *settings = shlex.split(text) or [""]
    except ValueError as error:  # an unclosed quote
        raise ParameterError(f"{text!r} is not a technique with parameters: {error}") from None
    kind = technique(get_registry().technique(name, "attribution").id)
    if not issubclass(kind, AttributionTechnique):
        raise ParameterError(
            f"{name} is of the family {kind.family}: only attributions make maps",
            parameter="techniques",
        )
    given: dict[str, str] = {}
    for setting in settings:
        field, equals, value = setting.partition("=")
        if not equals:
            raise ParameterError(
                f"{setting!r} after {name} is not a parameter: write name=value, as in 'relu=no'",
                parameter="techniques",
            )
        given[field.lstrip("-").replace("-", "_")] = value
    return kind(**given)


def unique_names(techniques: Sequence[AttributionTechnique], names: Sequence[str]) -> list[str]:
    """Return names for a table; equal names get the parameters that differ from their defaults."""
    return [
        " ".join([name, *_settings(each)]) if names.count(name) > 1 else name
        for each, name in zip(techniques, names, strict=True)
    ]


def _signature(kind: type, method: str) -> inspect.Signature:
    """Return the signature of an instance's method, without `self`."""
    signature = inspect.signature(getattr(kind, method))
    if isinstance(inspect.getattr_static(kind, method), staticmethod | classmethod):
        return signature
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _parameters(base: type, method: str) -> list[str]:
    return list(_signature(base, method).parameters)


def _settings(technique: AttributionTechnique) -> list[str]:
    fields = type(technique).model_fields
    return [
        f"{name}={value}"
        for name, value in technique.model_dump().items()
        if name != "layer" and value != fields[name].get_default(call_default_factory=True)
    ]
