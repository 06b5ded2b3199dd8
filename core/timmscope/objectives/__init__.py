"""Objectives: one scalar of the model per image, which techniques explain, climb or attack."""

from timmscope.objectives.algebra import Objective
from timmscope.objectives.class_objectives import (
    class_logit,
    log_probability,
    probability,
    top,
)
from timmscope.objectives.each import each, interpolate
from timmscope.objectives.guide import guide
from timmscope.objectives.layer_objectives import channel, cosine, direction, layer_energy, neuron
from timmscope.objectives.match import match
from timmscope.objectives.model import ModelLike
from timmscope.objectives.text import as_objective, parse_objective

__all__ = [
    "ModelLike",
    "Objective",
    "as_objective",
    "channel",
    "class_logit",
    "cosine",
    "direction",
    "each",
    "guide",
    "interpolate",
    "layer_energy",
    "log_probability",
    "match",
    "neuron",
    "parse_objective",
    "probability",
    "top",
]
