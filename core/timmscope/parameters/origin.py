"""Errors about what a technique did, which name it with its plugin and version.

The user of a third party's plugin needs to know where the fault is.
"""

from __future__ import annotations

from timmscope.parameters.base import Parameters
from timmscope_registry import Entry, TechniqueError, TechniqueSpec, get_registry
from timmscope_registry.contributions import culprit
from timmscope_registry.plugin_faults import fault


def technique_error(
    technique: Parameters, did: str, *, expected: str = "", advice: str | None = None
) -> TechniqueError:
    """Return an error about what a technique did, which names the technique and its plugin."""
    return TechniqueError(fault(origin_of(technique), did, expected=expected, advice=advice))


def origin_of(technique: Parameters | type[Parameters]) -> Entry[TechniqueSpec] | str:
    """Return what an error names as its origin: another plugin's contribution, or the class."""
    kind = technique if isinstance(technique, type) else type(technique)
    return culprit(kind, get_registry().techniques(), f"technique {kind.title()}")
