"""Finds the class of a registered name, and makes an object of a text like `jpeg quality=75`.

A text holds a name, followed by parameters that differ from their defaults. Values that contain
spaces are quoted as in a shell.
"""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel

from timmscope.parameters.base import Parameters
from timmscope_registry import Entry, ParameterError, PluginError, TechniqueSpec, get_registry
from timmscope_registry.contributions import subclass
from timmscope_registry.plugin_faults import fault, with_article

P = TypeVar("P", bound=Parameters)


def from_text(text: str, base: type[P], *, purpose: str, parameter: str) -> P:
    """Return the technique of a text such as `grad-cam` or `grad-cam layer=blocks.4 relu=no`.

    Args:
        text: a registered name, and parameters.
        base: the base class that the technique must have.
        purpose: what only this base does, for the error about another: `only attributions make
            maps`.
        parameter: the parameter of the caller that holds the text, for errors.

    Raises:
        PluginError: there is no technique of this name, or its class does not follow its base.
        ParameterError: it has another base, or a parameter is unknown, malformed or out of range.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:  # an unclosed quote
        raise ParameterError(
            f"{text!r} is not a technique with parameters: {error}", parameter=parameter
        ) from None
    return from_words(words, base, purpose=purpose, parameter=parameter)


def from_words(words: Sequence[str], base: type[P], *, purpose: str, parameter: str) -> P:
    """Return the technique of the words of a text; arguments and errors as for `from_text`."""
    name, *settings = words or [""]
    # The registry's message is about all techniques; here it suggests those of the base.
    entry = get_registry().technique(name, base.base)
    if entry.spec.base != base.base:
        what = f"of the family {entry.spec.family}"
        if entry.spec.family == base.family:
            what = with_article(f"{entry.spec.base} technique")
        raise ParameterError(f"{name} is {what}: {purpose}", parameter=parameter)
    kind = registered_class(entry, base)
    given: dict[str, Any] = {}
    for setting in settings:
        field, equals, value = setting.partition("=")
        if not equals:
            raise ParameterError(
                f"{setting!r} after {name} is not a parameter: write name=value, as in 'relu=no'",
                parameter=parameter,
            )
        given[field.lstrip("-").replace("-", "_")] = _value(value)
    return kind(**given)


def _value(text: str) -> Any:
    """Return lists and null as JSON values; pydantic converts all other texts."""
    if text == "null" or text.startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def registered_class(entry: Entry[TechniqueSpec], base: type[P]) -> type[P]:
    """Return the class of a contribution.

    Raises:
        PluginError: it cannot be imported, or does not follow the interface of `base`.
    """
    found = subclass(entry, base)
    if "__call__" in vars(base) and found.__call__ is not base.__call__:
        raise PluginError(fault(entry, "defines __call__", expected="that of its base class"))
    for method in sorted(base.__abstractmethods__):
        called = list(_signature(base, method).parameters)
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


def _signature(kind: type, method: str) -> inspect.Signature:
    """Return the signature of an instance's method, without `self`."""
    signature = inspect.signature(getattr(kind, method))
    if isinstance(inspect.getattr_static(kind, method), staticmethod | classmethod):
        return signature
    return signature.replace(parameters=list(signature.parameters.values())[1:])
