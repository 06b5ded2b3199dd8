"""Attributions as people write them where several stand side by side: `occlusion patch_px=56`.

Comparing and evaluating take many techniques at once, so their parameters cannot be flags of one
command. A text names a technique and, behind it, the parameters that differ from the default.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from timmscope.techniques.attribution import AttributionTechnique
from timmscope_registry import ParameterError, get_registry


def attribution(text: str) -> AttributionTechnique:
    """The attribution that a text names, as in `grad-cam` or `grad-cam layer=blocks.4 relu=no`.

    Raises:
        PluginError: no technique is called that.
        ParameterError: it is no attribution, or a parameter is unknown, malformed or out of range.
    """
    from timmscope.lookup import technique

    try:
        name, *settings = shlex.split(text) or [""]
    except ValueError as error:  # a quote without its end
        raise ParameterError(f"{text!r} is no technique with parameters: {error}") from None
    kind = technique(get_registry().technique(name, "attribution").id)
    if not issubclass(kind, AttributionTechnique):
        raise ParameterError(
            f"{name} is of the family {kind.family}: it makes no maps, and only attributions do",
            parameter="techniques",
        )
    given: dict[str, str] = {}
    for setting in settings:
        field, equals, value = setting.partition("=")
        if not equals:
            raise ParameterError(
                f"{setting!r} behind {name} is no parameter: write name=value, as in 'relu=no'",
                parameter="techniques",
            )
        given[field.lstrip("-").replace("-", "_")] = value
    return kind(**given)


def told_apart(techniques: Sequence[AttributionTechnique], names: Sequence[str]) -> list[str]:
    """Names for a table: where two would be equal, with what is set otherwise than by default."""
    return [
        " ".join([name, *_settings(each)]) if names.count(name) > 1 else name
        for each, name in zip(techniques, names, strict=True)
    ]


def _settings(technique: AttributionTechnique) -> list[str]:
    fields = type(technique).model_fields
    return [
        f"{name}={value}"
        for name, value in technique.model_dump().items()
        if name != "layer" and value != fields[name].get_default(call_default_factory=True)
    ]
