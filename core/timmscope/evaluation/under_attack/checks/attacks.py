"""Checks of attacks among each other: 5 steps, 6 radii, 7 convergence, 10 losses, 14 eight bits."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from timmscope.drawing.style import format_share
from timmscope.evaluation.under_attack.checks.bench import LONGER, Bench, Outcome
from timmscope.evaluation.under_attack.checks.check import Check, not_applicable, passed, slack

_NEEDED = ("fgsm", "pgd", "radius", "longer")
"""How the names of the attacks begin that these checks compare."""
_CONVERGED = 1.0
"""Points of accuracy that ten times the steps and restarts may take."""
_ORDER = 1.0
"""Points of accuracy by which a stronger attack may be worse."""
_LOSSES = 2.0
"""Points of accuracy by which attacks of different losses may differ."""
_GREY = 5.0
"""Points of accuracy that may be left at half the range."""
_SURVIVING = 5.0
"""Share of the broken images, in percent, that rounding may repair."""


def judge_attacks(found: Mapping[str, Outcome], bench: Bench) -> list[Check]:
    """Return checks 5, 6, 7, 10 and 14.

    Args:
        found: what the attacks of the checks did, by their names.
        bench: where they attacked.
    """
    own = [each for name, each in found.items() if name.startswith(_NEEDED)]
    refused = next((each.refused for each in own if each.refused), "")
    if "pgd-20" not in found or refused:
        reason = refused or "the attacks fgsm and pgd are not installed"
        return [not_applicable(number, reason) for number in (5, 6, 7, 10, 14)]
    if not found["pgd-20"].right:
        reason = "the model classifies none of these images right"
        return [not_applicable(number, reason) for number in (5, 6, 7, 10, 14)]
    return [
        _steps(found, bench),
        _radii(found, bench),
        _converged(found, bench),
        _losses(found, bench),
        _rounded(found["pgd-20"], bench),
    ]


def _accuracies(named: Mapping[str, Outcome]) -> str:
    return ", ".join(f"{name} {format_share(each.share)}" for name, each in named.items())


def _steps(found: Mapping[str, Outcome], bench: Bench) -> Check:
    named = {
        "FGSM": found["fgsm"],
        "PGD-10": found["pgd-10"],
        "PGD-100": found["pgd-100"],
    }
    allowed = slack(found["fgsm"].count, _ORDER)
    ok = all(
        after.robust <= before.robust + allowed
        for before, after in itertools.pairwise(named.values())
    )
    evidence = f"accuracy at {bench.radius_text()}: {_accuracies(named)}"
    return passed(5, ok, evidence, {name: each.share for name, each in named.items()})


def _radii(found: Mapping[str, Outcome], bench: Bench) -> Check:
    named = {
        f"at {bench.radius_text(radius)}": found[
            "pgd-20" if radius == bench.epsilon else f"radius {number}"
        ]
        for number, radius in enumerate(bench.radii)
    }
    outcomes = list(named.values())
    allowed = slack(outcomes[0].count, _ORDER)
    falls = all(b.robust <= a.robust + allowed for a, b in itertools.pairwise(outcomes))
    last = outcomes[-1]
    ok = falls and last.robust <= slack(last.count, _GREY)
    evidence = f"accuracy under PGD-20 {_accuracies(named)}"
    return passed(6, ok, evidence, {name: each.share for name, each in named.items()})


def _converged(found: Mapping[str, Outcome], bench: Bench) -> Check:
    first, more = found["pgd-20"], found["longer"]
    left = first.robust - more.broken
    evidence = (
        f"accuracy at {bench.radius_text()}: {format_share(first.share)} after 20 steps, "
        f"{format_share(left / max(first.count, 1))} after {LONGER[0]} from each of {LONGER[1]} "
        "starts "
        f"({more.broken} of {first.count} images more)"
    )
    ok = more.broken <= slack(first.count, _CONVERGED)
    return passed(7, ok, evidence, {"PGD-20": first.share, "more": more.broken / first.count})


def _losses(found: Mapping[str, Outcome], bench: Bench) -> Check:
    named = {"cross-entropy": found["pgd-20"], "margin": found["pgd-20 margin"]}
    if "pgd-20 dlr" in found:
        named["DLR"] = found["pgd-20 dlr"]
    robust = [each.robust for each in named.values()]
    evidence = f"accuracy under PGD-20 at {bench.radius_text()}: {_accuracies(named)}"
    ok = max(robust) - min(robust) <= slack(found["pgd-20"].count, _LOSSES)
    return passed(10, ok, evidence, {name: each.share for name, each in named.items()})


def _rounded(found: Outcome, bench: Bench) -> Check:
    if not found.broken:
        return not_applicable(14, f"PGD-20 breaks no image at {bench.radius_text()}")
    evidence = (
        f"{found.broken_8bit} of the {found.broken} images that PGD-20 breaks at "
        f"{bench.radius_text()} stay broken in 8 bits"
    )
    ok = found.broken - found.broken_8bit <= slack(found.broken, _SURVIVING)
    return passed(14, ok, evidence, {"survive": found.broken_8bit / found.broken})
