"""Tests a contribution of a plugin by named checks, as one parametrised pytest test.

    from timmscope.testing import conformance

    test_conforms = conformance("my-thing", expected_failures={"runs-on-token": "needs a grid"})

Every check has a name, so that a failure says which promise is broken. A check that is listed in
`expected_failures` must fail.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timmscope_registry import ParameterError, PluginError, did_you_mean, get_registry

Body = Callable[["Case"], None]


class NotApplicable(Exception):
    """Raised by a check that does not apply to a contribution."""


@dataclass(frozen=True)
class Check:
    """One promise that contributions of a kind must keep.

    Attributes:
        name: in lower case with hyphens, as in `expected_failures`.
        promise: what must hold, in a sentence.
        body: raises `AssertionError` if the promise is broken, or `NotApplicable`.
        base: the base of the techniques that make the promise; empty for all.
    """

    name: str
    promise: str
    body: Body = field(repr=False)
    base: str = ""


@dataclass(frozen=True)
class Case:
    """A contribution under test.

    Attributes:
        entry: the contribution, as the registry lists it.
        parameters: for techniques and collectors, parameters for a quick run.
        make: for image sources, a function that writes images into a folder and returns their
            location.
        folder: an empty folder.
    """

    entry: Any
    parameters: Mapping[str, Any]
    make: Callable[[Path], str] | None
    folder: Path


CHECKS: dict[str, list[Check]] = {}
"""Checks by kind of contribution."""


def check(*kinds: str, base: str = "") -> Callable[[Body], Body]:
    """Register a function as a check of these kinds or one base; its docstring is the promise."""

    def register(body: Body) -> Body:
        promise = inspect.cleandoc(body.__doc__ or "")
        assert promise, f"{body.__name__} has no docstring"
        for kind in kinds:
            CHECKS.setdefault(kind, []).append(
                Check(body.__name__.replace("_", "-"), promise, body, base)
            )
        return body

    return register


def checks(kind: str, base: str | None = None) -> list[Check]:
    """Return the checks of a kind of contribution, such as `technique` or `image source`.

    Args:
        kind: the kind.
        base: the base of a technique; by default the checks of all bases.
    """
    from timmscope.testing import (  # noqa: F401
        backends,
        collectors,
        defences,
        every,
        sources,
        techniques,
    )

    return [check for check in CHECKS[kind] if base is None or check.base in ("", base)]


def conformance(
    name: str,
    *,
    kind: str | None = None,
    parameters: Mapping[str, Any] | Callable[[Path], Mapping[str, Any]] | None = None,
    make: Callable[[Path], str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    marks: Mapping[str, Any] | None = None,
) -> Callable[..., None]:
    """Return a pytest test of a contribution, parametrised by the checks of its kind.

    Args:
        name: name of a technique, collector, model source, image source or index backend, with or
            without its distribution. It must be installed, or loaded with
            `get_registry().load_file`.
        kind: the kind, if contributions of several kinds have this name.
        parameters: for a technique or collector, parameters for a quick run, or a function that
            makes them with an empty folder to write to, if they name files. A technique's defaults
            are still tried once, on one tiny model.
        make: for an image source, a function that writes at least three images into a folder and
            returns the location. Without it, checks that need images are skipped.
        expected_failures: names of checks that must fail, with the reasons.
        marks: names of checks with a pytest mark each, such as `pytest.mark.slow`, so that
            `-m "not slow"` leaves them out.

    Raises:
        PluginError: no contribution has this name, or several have.
        ParameterError: there is no check of a name in `expected_failures` or `marks`.
    """
    import pytest

    entry = _find(name, kind)
    known = dict(expected_failures or {})
    found = checks(entry.kind, getattr(entry.spec, "base", ""))
    _require_checks("expected_failures", known, found, entry.kind)
    _require_checks("marks", marks or {}, found, entry.kind)

    def test_conformance(check: Check, tmp_path: Path) -> None:
        given = parameters(tmp_path) if callable(parameters) else parameters
        try:
            check.body(Case(entry, dict(given or {}), make, tmp_path))
        except NotApplicable as reason:
            pytest.skip(str(reason))

    failing = {
        name: pytest.mark.xfail(reason=reason, strict=True) for name, reason in known.items()
    }
    cases = [
        pytest.param(
            each,
            id=each.name,
            marks=[mark[each.name] for mark in (failing, marks or {}) if each.name in mark],
        )
        for each in found
    ]
    test: Callable[..., None] = pytest.mark.parametrize("check", cases)(test_conformance)
    return test


def _require_checks(parameter: str, names: Iterable[str], found: list[Check], kind: str) -> None:
    """Raise `ParameterError` for a name of no check."""
    known = [each.name for each in found]
    for wrong in set(names) - set(known):
        hint = did_you_mean(wrong, known)
        raise ParameterError(
            f"there is no check {wrong!r} of a {kind}; {hint or ', '.join(known)}",
            parameter=parameter,
        )


def _find(name: str, kind: str | None) -> Any:
    registry = get_registry()
    found = [
        entry
        for entry in registry.entries()
        if name in (entry.id, entry.spec.name) and kind in (None, entry.kind)
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        known = sorted({entry.spec.name for entry in registry.entries()})
        hint = did_you_mean(name, known) or (
            "is its package installed? For a file: get_registry().load_file('my.py')"
        )
        raise PluginError(f"no {kind or 'contribution'} is called {name!r}; {hint}")
    raise PluginError(
        f"{name!r} is "
        + " and ".join(f"the {entry.kind} {entry.id}" for entry in found)
        + ": choose one by kind=, or by its full name"
    )
