"""Turns a result into lines for people: one per attack, with the accuracy at every radius."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from timmscope.drawing.style import format_share
from timmscope.evaluation.under_attack.radii import radius_text
from timmscope.evaluation.under_attack.result import WORST, Robustness, Share
from timmscope.techniques.balls import NORM_NAMES

ORDER = ("direct", "oblivious", "adaptive")
_LONGEST = 22
"""Characters of another model's name that a line shows."""
MARKS = {"pass": "✓", "fail": "✗", "not applicable": "–"}


@dataclass(frozen=True)
class Line:
    """What an attack leaves of a model's accuracy.

    Attributes:
        attack: name of the attack, or `worst case`.
        how: direct, oblivious, adaptive, or from another model.
        shares: accuracy at each radius of the norm; None where it did not attack.
        rows: the rows of the result that the line shows.
        kept: broken images that stay broken in 8 bits; None for the worst case.
        forwards: mean forward passes per attacked image and radius; NaN if unknown.
        backwards: mean backward passes.
        queries: mean queries.
        stuck: images that were not broken because of a zero gradient.
    """

    attack: str
    how: str
    shares: list[Share | None]
    rows: list[int]
    kept: Share | None = None
    forwards: float = math.nan
    backwards: float = math.nan
    queries: float = math.nan
    stuck: int = 0


def lines(result: Robustness, place: int, norm: str) -> list[Line]:
    """Return the lines of a model and norm, the worst case last.

    Args:
        result: the result.
        place: the model.
        norm: the norm.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for number, row in enumerate(result.rows):
        if row["target"] == place and row["norm"] == norm:
            groups.setdefault((row["attack"], result.how(number)), []).append(number)
    attacks = list(dict.fromkeys(attack for attack, _ in groups))

    def place_of(names: tuple[str, str]) -> tuple[int, int]:
        attack, how = names
        return attacks.index(attack), ORDER.index(how) if how in ORDER else len(ORDER)

    ordered = sorted(groups, key=place_of)
    found = [_line(result, norm, *names, groups[names]) for names in ordered]
    worst: list[Share | None] = [
        result.worst(norm, radius, place) for radius in result.epsilons[norm]
    ]
    return [*found, Line(WORST, "", worst, [])] if found else []


def _line(result: Robustness, norm: str, attack: str, how: str, rows: list[int]) -> Line:
    shares: list[Share | None] = []
    for radius in result.epsilons[norm]:
        at = [row for row in rows if result.rows[row]["epsilon"] in (None, radius)]
        share = result.accuracy(at[0], radius) if at else None
        shares.append(share if share is not None and share.count else None)
    kept = [result.survival(row) for row in rows]
    return Line(
        attack,
        how if len(how) <= _LONGEST else f"from …{how[-_LONGEST:]}",
        shares,
        rows,
        kept=Share(sum(each.hits for each in kept), sum(each.count for each in kept)),
        forwards=_mean(result.forwards, result.radius, rows),
        backwards=_mean(result.backwards, result.radius, rows),
        queries=_mean(result.queries, result.radius, rows),
        stuck=max((result.stuck(row) for row in rows), default=0),
    )


def _mean(counts: Tensor, radius: Tensor, rows: list[int]) -> float:
    chosen = torch.tensor(rows)
    known = counts[chosen][(radius[chosen] > 0) & counts[chosen].isfinite()]
    return float(known.mean()) if len(known) else math.nan


def percent(share: Share | None) -> str:
    """Return a share and its interval in percent: `52 (42–62)`."""
    if share is None or not share.count:
        return "–"
    low, high = share.interval
    return f"{100 * share.value:.0f} ({100 * low:.0f}–{100 * high:.0f})"


def amount(value: float) -> str:
    """Return a mean number of passes: `50`, `3.5`, `1,204`."""
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if value >= 10 or value == round(value) else f"{value:.1f}"


def headline(result: Robustness, place: int) -> str:
    """Return in a sentence what is left of a model's accuracy at the largest radii."""
    clean = result.clean(place)
    facts = [f"{format_share(clean.value)} of {clean.count} images are right"]
    for norm, radii in result.epsilons.items():
        worst = result.worst(norm, radii[-1], place)
        facts.append(
            f"{format_share(worst.value)} stay right within {NORM_NAMES[norm]} "
            f"{radius_text(radii[-1], norm)}"
        )
    return f"{shown_name(result, place)}: {', '.join(facts)}"


def shown_name(result: Robustness, place: int) -> str:
    """Return the name of a model for people: a defended one is `behind jpeg quality=50`."""
    name = result.models[place]
    return f"behind {name}" if result.roles[place] == "defended" else name


def check_counts(result: Robustness, place: int) -> str:
    """Return in words how many checks of a model pass, fail and do not apply."""
    status = [check["status"] for check in result.checks if check["model"] == place]
    parts = [f"{status.count('pass')} pass", f"{status.count('fail')} fail"]
    if "not applicable" in status:
        parts.append(f"{status.count('not applicable')} do not apply")
    return ", ".join(parts)
