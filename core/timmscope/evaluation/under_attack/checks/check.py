"""What a check of hidden gradients says: pass, fail or not applicable, with its evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["pass", "fail", "not applicable"]


@dataclass(frozen=True)
class Check:
    """The outcome of one check of a model.

    Attributes:
        number: its number, 1 to 15.
        name: what holds if it passes.
        status: whether it passes, fails, or cannot be made here.
        evidence: the numbers that it rests on, in words.
        advice: what to do if it fails; empty otherwise.
        values: the numbers by name.
    """

    number: int
    name: str
    status: Status
    evidence: str
    advice: str = ""
    values: dict[str, Any] = field(default_factory=dict)

    def row(self, model: int) -> dict[str, Any]:
        """Return the check of a model as plain values."""
        return {
            "model": model,
            "number": self.number,
            "check": self.name,
            "status": self.status,
            "evidence": self.evidence,
            "advice": self.advice,
            "values": self.values,
        }


NAMES: dict[int, str] = {
    1: "the same image gives the same logits",
    2: "outputs are logits, not probabilities",
    3: "no gradient is zero or not finite",
    4: "gradients agree with differences",
    5: "more steps are stronger than few, and few than one",
    6: "accuracy falls with the radius, and ends near 0",
    7: "ten times the steps and more starts change little",
    8: "attacks without gradients are not stronger",
    9: "attacks from other models are not stronger",
    10: "attacks of different losses agree",
    11: "attacks through the defence are the stronger ones",
    12: "the forward runs no backward",
    13: "the loss rises along an attack",
    14: "successes survive rounding to 8 bits",
    15: "an image alone gives the logits that it gives in a batch",
}
"""What holds if a check passes, by its number (attack and evaluation checklists of Athalye et al.,
ICML 2018; Carlini et al., arXiv:1902.06705; Tramèr et al., NeurIPS 2020)."""
ADVICE: dict[int, str] = {
    1: "judge it by attacks that average over draws (draws=…), and by more of them",
    2: "let the model return logits: attacks take a softmax of what it returns",
    3: "attack with loss=margin, or without gradients (square, hopskipjump)",
    4: "attack an approximation that has a gradient (backward=identity), or without gradients",
    5: "the gradients mislead: attack with other losses, more restarts, or without gradients",
    6: "a change of half the range can make any image grey: the attack fails, not the model gains",
    7: "give the attack more steps and restarts until the accuracy no longer falls",
    8: "the gradients mislead: believe the attacks without gradients, and give them more queries",
    9: "the gradients mislead: attack an undefended model and transfer, or approximate the defence",
    10: "the loss saturates: report the strongest, and add margin and dlr to the attacks",
    11: "the gradient through the defence is useless: approximate it, or attack without gradients",
    12: "attack the whole computation, with the inner optimisation unrolled or approximated",
    13: "lower the step size, or attack with another loss",
    14: "judge the accuracy of saved pictures by the column 8 bits",
    15: "put the module into eval mode, and take out layers that mix images of a batch",
}
"""What to do if a check fails, by its number."""


def passed(number: int, ok: bool, evidence: str, values: Mapping[str, Any]) -> Check:
    """Return a check that was made."""
    status: Status = "pass" if ok else "fail"
    return Check(
        number, NAMES[number], status, evidence, "" if ok else ADVICE[number], dict(values)
    )


def not_applicable(number: int, reason: str) -> Check:
    """Return a check that cannot be made."""
    return Check(number, NAMES[number], "not applicable", reason)


def slack(count: int, points: float) -> int:
    """Return how many of `count` images make this many points of a percent, at least one."""
    return max(1, math.floor(count * points / 100 + 1e-9))
