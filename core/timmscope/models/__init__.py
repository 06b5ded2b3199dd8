"""Loads timm models with their preprocessing, class names and hook points."""

from timmscope.models.classes import ClassNames
from timmscope.models.hooked_model import HookedModel, PassCounter
from timmscope.models.loading import load_model
from timmscope.models.pooled_features import pooled_features
from timmscope.models.preprocessing import Preprocessing
from timmscope.models.trained import load_trained

__all__ = [
    "ClassNames",
    "HookedModel",
    "PassCounter",
    "Preprocessing",
    "load_model",
    "load_trained",
    "pooled_features",
]
