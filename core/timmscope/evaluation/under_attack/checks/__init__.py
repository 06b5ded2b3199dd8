"""The fifteen checks that show when gradients mislead attacks, so that a model only looks robust.

A defence that hides its gradients keeps attacks from finding changes that exist (Athalye, Carlini &
Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018, arXiv:1802.00420). Each
check compares what must agree if gradients are honest. A check that fails proves no fault, and all
that pass prove no robustness; they say which numbers not to believe.
"""

from timmscope.evaluation.under_attack.checks.attacks import judge_attacks
from timmscope.evaluation.under_attack.checks.bench import MOST_IMAGES, Bench, Outcome
from timmscope.evaluation.under_attack.checks.check import NAMES, Check
from timmscope.evaluation.under_attack.checks.comparisons import (
    Pair,
    judge_adaptive,
    judge_black_box,
    judge_transfer,
)
from timmscope.evaluation.under_attack.checks.gradients import judge_gradients, measure_gradients
from timmscope.evaluation.under_attack.checks.outputs import judge_outputs, measure_outputs

__all__ = [
    "MOST_IMAGES",
    "NAMES",
    "Bench",
    "Check",
    "Outcome",
    "Pair",
    "judge_adaptive",
    "judge_attacks",
    "judge_black_box",
    "judge_gradients",
    "judge_outputs",
    "judge_transfer",
    "measure_gradients",
    "measure_outputs",
]
