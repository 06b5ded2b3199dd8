"""Objectives: one scalar of the model per image, which techniques explain, climb or attack."""

from timmscope.objectives.algebra import Objective
from timmscope.objectives.kinds import (
    as_objective,
    channel,
    class_logit,
    direction,
    layer_energy,
    neuron,
    top,
)
from timmscope.objectives.model import ModelLike
from timmscope.objectives.text import parse_objective

__all__ = [
    "ModelLike",
    "Objective",
    "as_objective",
    "channel",
    "class_logit",
    "direction",
    "layer_energy",
    "neuron",
    "parse_objective",
    "top",
]
