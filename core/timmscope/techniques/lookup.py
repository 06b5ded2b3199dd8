"""Finds techniques by registered name, or by a text such as `occlusion patch_px=56`."""

from __future__ import annotations

from collections.abc import Sequence

from timmscope.parameters import Parameters, from_text, registered_class
from timmscope.parameters.names import comparable
from timmscope_registry import get_registry

from .analysis import ModelTechnique
from .attack import AttackTechnique
from .attribution import AttributionTechnique
from .base import Technique
from .certification import CertificationTechnique
from .defence import DefenceTechnique
from .store_analysis import StoresTechnique, StoreTechnique
from .style import StyleTechnique
from .synthesis import SynthesisTechnique
from .training import TrainingTechnique
from .universal import UniversalAttack

BASES: dict[str, type[Technique]] = {
    base.base: base
    for base in (
        AttributionTechnique,
        SynthesisTechnique,
        AttackTechnique,
        UniversalAttack,
        DefenceTechnique,
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
    return registered_class(entry, BASES[entry.spec.base])


def attribution(text: str) -> AttributionTechnique:
    """Return the attribution of a text such as `grad-cam` or `grad-cam layer=blocks.4 relu=no`.

    Raises:
        PluginError: there is no technique of this name.
        ParameterError: it is not an attribution, or a parameter is unknown, malformed or out of
            range.
    """
    return from_text(
        text,
        AttributionTechnique,  # type: ignore[type-abstract]
        purpose="only attributions make maps",
        parameter="techniques",
    )


def unique_names(techniques: Sequence[AttributionTechnique], names: Sequence[str]) -> list[str]:
    """Return names for a table; equal names get the parameters that differ from their defaults."""
    return [
        " ".join([name, *_settings(each)]) if names.count(name) > 1 else name
        for each, name in zip(techniques, names, strict=True)
    ]


def settings_text(technique: Parameters) -> str:
    """Return name and parameters that differ from their defaults, as in `pgd steps=50`."""
    recorded = technique._recorded()
    return " ".join([technique.title(), *(f"{name}={recorded[name]}" for name in _set(technique))])


def _settings(technique: Parameters) -> list[str]:
    return [f"{name}={getattr(technique, name)}" for name in _set(technique) if name != "layer"]


def _set(technique: Parameters) -> list[str]:
    """Return the names of the parameters that differ from their defaults."""
    fields = type(technique).model_fields
    return [
        name
        for name, value in technique
        if value is not (known := fields[name].get_default(call_default_factory=True))
        and comparable(value) != comparable(known)
    ]
