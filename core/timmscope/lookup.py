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
    found = entry.load()
    base = BASES[entry.spec.family]
    who = f"the technique {entry.id} {entry.plugin.version}".rstrip()
    if not (isinstance(found, type) and issubclass(found, base)):
        raise PluginError(f"{who} is {found!r}, expected a subclass of timmscope.{base.__name__}")
    if missing := sorted(found.__abstractmethods__):
        raise PluginError(f"{who} has no method {', '.join(missing)}")
    if found.__call__ is not base.__call__:
        raise PluginError(f"{who} has a __call__ of its own, which its family's base has to do")
    return found
