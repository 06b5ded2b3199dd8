"""Gradient ascent on images, which syntheses and styles share: spaces, views, the loop, priors."""

from timmscope.techniques.ascent.best_images import BestImages, GradientCheck
from timmscope.techniques.ascent.climb import Climb, loop_model
from timmscope.techniques.ascent.cppn import CppnParameterisation
from timmscope.techniques.ascent.frame_steps import frame_steps
from timmscope.techniques.ascent.image_priors import alpha_norm, total_variation
from timmscope.techniques.ascent.laplacian import LaplacianParameterisation
from timmscope.techniques.ascent.memory_format import memory_format
from timmscope.techniques.ascent.normalised_steps import NormalisedSteps
from timmscope.techniques.ascent.outcome import SynthesisOutcome
from timmscope.techniques.ascent.parameterisation import (
    FourierParameterisation,
    Parameterisation,
    PixelParameterisation,
)
from timmscope.techniques.ascent.phase import (
    PhaseParameterisation,
    falling_spectrum,
    mean_spectrum,
)
from timmscope.techniques.ascent.sizes import check_size
from timmscope.techniques.ascent.views import CropViews, RandomViews, Views

__all__ = [
    "BestImages",
    "Climb",
    "CppnParameterisation",
    "CropViews",
    "FourierParameterisation",
    "GradientCheck",
    "LaplacianParameterisation",
    "NormalisedSteps",
    "Parameterisation",
    "PhaseParameterisation",
    "PixelParameterisation",
    "RandomViews",
    "SynthesisOutcome",
    "Views",
    "alpha_norm",
    "check_size",
    "falling_spectrum",
    "frame_steps",
    "loop_model",
    "mean_spectrum",
    "memory_format",
    "total_variation",
]
