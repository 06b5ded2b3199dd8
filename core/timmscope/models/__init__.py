"""Loads timm models with their preprocessing, class names and hook points."""

from timmscope.models.classes import ClassNames
from timmscope.models.defence import Defence
from timmscope.models.ensemble_model import ensemble
from timmscope.models.hooked_model import HookedModel
from timmscope.models.loading import load_model
from timmscope.models.pass_counter import PassCounter
from timmscope.models.pooled_features import pooled_features
from timmscope.models.preprocessing import Preprocessing
from timmscope.models.trained import load_trained

__all__ = [
    "ClassNames",
    "Defence",
    "HookedModel",
    "PassCounter",
    "Preprocessing",
    "ensemble",
    "load_model",
    "load_trained",
    "pooled_features",
]
