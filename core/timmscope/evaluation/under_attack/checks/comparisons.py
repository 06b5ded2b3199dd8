"""Checks against other ways to attack: 8 without gradients, 9 from other models, 11 around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from timmscope.drawing.style import format_share
from timmscope.evaluation.under_attack.checks.bench import Bench, Outcome
from timmscope.evaluation.under_attack.checks.check import Check, not_applicable, passed, slack

_BLACK_BOX = 0.2
"""Points of accuracy that attacks without gradients may take from what the others leave."""
_TRANSFER = 0.2
"""Points of accuracy by which an attack from elsewhere may be stronger."""


@dataclass(frozen=True)
class Pair:
    """An attack made on the judged model itself, and the same attack made elsewhere.

    Attributes:
        title: attack and radius.
        origin: the model elsewhere.
        count: images that both attacked and both models classify right.
        own: of those, images that the attack on the model itself breaks.
        elsewhere: of those, images that the attack from elsewhere breaks.
    """

    title: str
    origin: str
    count: int
    own: int
    elsewhere: int

    def is_stronger(self, points: float) -> bool:
        """Whether the attack from elsewhere breaks more by this many points, and two images."""
        return self.elsewhere - self.own > slack(self.count, points)

    def text(self) -> str:
        """Return both shares in words."""
        share = self.count and self.own / self.count, self.count and self.elsewhere / self.count
        return (
            f"{self.title} breaks {format_share(share[0])} from the model itself, "
            f"{format_share(share[1])} from {self.origin}"
        )


def judge_black_box(found: Mapping[str, Outcome], bench: Bench) -> Check:
    """Return check 8: what attacks without gradients break that the others leave."""
    named = {name: found[name] for name in ("noise", "square", "hopskipjump") if name in found}
    ran = {name: each for name, each in named.items() if not each.refused}
    if not ran:
        reason = next((each.refused for each in named.values()), "no attack without gradients")
        return not_applicable(8, reason)
    first = next(iter(ran.values()))
    more = max(each.broken for each in ran.values())
    parts = ", ".join(f"{name} {each.broken} more" for name, each in ran.items())
    evidence = (
        f"of {first.count} images, after all attacks by gradients at {bench.radius_text()}: {parts}"
    )
    values = {name: each.broken for name, each in ran.items()}
    return passed(8, more <= slack(first.count, _BLACK_BOX), evidence, values)


def judge_transfer(pairs: Sequence[Pair], found: Mapping[str, Outcome], bench: Bench) -> Check:
    """Return check 9: whether attacks from other models are stronger."""
    every = list(pairs)
    moved, own = found.get("mi-fgsm"), found.get("pgd-100")
    if moved is not None and own is not None and not moved.refused and not own.refused:
        title = f"MI-FGSM, against PGD-100, at {bench.radius_text()},"
        every.append(Pair(title, "a surrogate", own.right, own.broken, moved.broken))
    return _compared(9, every, _TRANSFER, "there is no other model to transfer from")


def judge_adaptive(pairs: Sequence[Pair], defended: bool) -> Check:
    """Return check 11: whether attacks through a defence are the stronger ones."""
    reason = "the model has no defence that is judged here"
    if defended:
        reason = "no attack ran both through the defence and around it"
    return _compared(11, pairs, _TRANSFER, reason)


def _compared(number: int, pairs: Sequence[Pair], points: float, reason: str) -> Check:
    known = [pair for pair in pairs if pair.count]
    if not known:
        return not_applicable(number, reason)
    worst = max(known, key=lambda pair: (pair.elsewhere - pair.own) / pair.count)
    stronger = [pair for pair in known if pair.is_stronger(points)]
    evidence = f"{worst.text()} ({len(stronger)} of {len(known)} attacks are stronger from there)"
    values = {"own": worst.own / worst.count, "elsewhere": worst.elsewhere / worst.count}
    return passed(number, not stronger, evidence, values)
