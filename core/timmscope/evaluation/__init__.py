"""Evaluates attribution techniques: metrics over many images, and comparisons side by side."""

from timmscope.evaluation.comparison import Comparison, compare
from timmscope.evaluation.curves import Deletion, Insertion
from timmscope.evaluation.metric import Case, Measurement, Metric
from timmscope.evaluation.pointing import PointingGame
from timmscope.evaluation.randomisation import CascadingRandomisation
from timmscope.evaluation.result import Evaluation
from timmscope.evaluation.runner import evaluate
from timmscope.evaluation.sensitivity import SensitivityN

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
    "SensitivityN",
    "compare",
    "evaluate",
]
