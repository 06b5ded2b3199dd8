"""Techniques by name: from what a registry lists to the class, checked."""

from __future__ import annotations

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
    return found
