"""Finds plugins' contributions, calls them, and checks the types of what they return."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from timmscope_registry.errors import PluginError
from timmscope_registry.loading import stdout_to_stderr
from timmscope_registry.plugin_faults import brief, fault, with_article
from timmscope_registry.registry import Entry, own_or_all

if TYPE_CHECKING:
    from timmscope_registry.specs import Spec

T = TypeVar("T")
S = TypeVar("S", bound="Spec", covariant=True)


def missing_plugin(kind: str, id_: str) -> str:
    """Return the message that no installed plugin contributes an id, and what to install.

    Args:
        kind: the kind of contribution, such as ``collector``.
        id_: ``"distribution:name"``, as read from a file; it may be any text.
    """
    distribution, _, name = id_.partition(":")
    if re.fullmatch(r"\w[\w.-]*\.py", distribution) and name:  # loaded from a file, not installed
        return (
            f"no plugin contributes the {kind} {name!r} of {distribution}: load it with --plugin "
            f"{distribution}, or see `timmscope doctor`"
        )
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", distribution) and name:
        return (
            f"no plugin contributes the {kind} {name!r} of {distribution}: install {distribution} "
            "(python -m pip install), or see `timmscope doctor`"
        )
    return (
        f"{id_!r} is not a registered {kind}; expected distribution:name, as `timmscope plugins` "
        "lists them"
    )


def entry_of(found: type, entries: Iterable[Entry[S]]) -> Entry[S] | None:
    """Return the contribution whose implementation is this class, if any, without imports."""
    path = f"{found.__module__}:{found.__qualname__}"
    leading = (e for e in entries if e.spec.impl == path or _resolves_to(e.spec.impl, found))
    return next(leading, None)


def culprit(found: type, entries: Iterable[Entry[S]], name: str) -> Entry[S] | str:
    """Return what an error about a class names: its third-party contribution, or else `name`."""
    entry = entry_of(found, entries)
    return name if entry is None or entry.plugin.distribution == "timmscope" else entry


def _resolves_to(impl: str, wanted: type) -> bool:
    """Whether an import string leads to the class by another path, such as a re-export."""
    module, _, path = impl.partition(":")
    found: object = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    return found is wanted


def by_scheme(entries: Iterable[Entry[Any]], text: str) -> tuple[Entry[Any], str] | None:
    """Split ``scheme:rest`` or ``id:rest`` into a source and the rest; None if no source matches.

    A scheme of timmscope's own is never that of another plugin, which is chosen by its full id.

    Raises:
        PluginError: several plugins contribute the scheme.
    """
    scheme, _, rest = text.partition(":")
    same: list[Entry[Any]] = []
    for entry in entries:
        if text.startswith(f"{entry.id}:"):
            return entry, text.removeprefix(f"{entry.id}:")
        if entry.spec.scheme == scheme:
            same.append(entry)
    same = own_or_all(same)
    if len(same) > 1:
        raise PluginError(
            f"several plugins contribute the {same[0].kind} {scheme!r}: use "
            + " or ".join(f"{entry.id}:{rest}" for entry in same)
        )
    return (same[0], rest) if same else None


def instantiate(entry: Entry[Any], location: str, expected: type[T]) -> T:
    """Call a source with a location and return the result.

    Raises:
        PluginError: the source cannot be loaded or called, or returns another type.
    """
    make = entry.load()
    try:
        with stdout_to_stderr():
            found = make(location)
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            raise  # the error is in the source's own code
        raise PluginError(fault(entry, f"cannot be called with text: {error}")) from error
    if not isinstance(found, expected):
        wanted = with_article(expected.__name__)
        raise PluginError(fault(entry, f"returned {brief(found)}", expected=wanted))
    return found


def subclass(entry: Entry[Any], base: type[T]) -> type[T]:
    """Return the class of a contribution.

    Raises:
        PluginError: the class cannot be loaded, is not a subclass of `base`, or is abstract.
    """
    found = entry.load()
    if not (isinstance(found, type) and issubclass(found, base)):
        wanted = f"a subclass of timmscope.{base.__name__}"
        raise PluginError(fault(entry, f"is {found!r}", expected=wanted))
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise PluginError(fault(entry, f"has no method {', '.join(missing)}"))
    return found
