"""The base class of trainings, with their data, checkpoints, cards and results."""

from timmscope.techniques.training.base import (
    TrainingBatch,
    TrainingProgress,
    TrainingTechnique,
    evaluating,
)
from timmscope.techniques.training.result import Training

__all__ = [
    "Training",
    "TrainingBatch",
    "TrainingProgress",
    "TrainingTechnique",
    "evaluating",
]
