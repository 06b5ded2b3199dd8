"""Evaluates: explanations by metrics and side by side, and models by attacks."""

from timmscope.evaluation.comparison import Comparison, compare
from timmscope.evaluation.curves import Deletion, Insertion
from timmscope.evaluation.metric import Case, Measurement, Metric
from timmscope.evaluation.pointing import PointingGame
from timmscope.evaluation.randomisation import CascadingRandomisation
from timmscope.evaluation.result import Evaluation
from timmscope.evaluation.runner import evaluate
from timmscope.evaluation.sensitivity import SensitivityN
from timmscope.evaluation.under_attack import Robustness, Share, robustness

__all__ = [
    "CascadingRandomisation",
    "Case",
    "Comparison",
    "Deletion",
    "Evaluation",
    "Insertion",
    "Measurement",
    "Metric",
    "PointingGame",
    "Robustness",
    "SensitivityN",
    "Share",
    "compare",
    "evaluate",
    "robustness",
]
