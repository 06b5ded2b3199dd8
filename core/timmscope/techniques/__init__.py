"""Techniques: parameters plus one method; and the results the families return."""

from timmscope.techniques.attack import Adversarial, AttackTechnique
from timmscope.techniques.attribution import Attribution, AttributionTechnique
from timmscope.techniques.base import LayerName, Technique
from timmscope.techniques.perturbation import (
    Baseline,
    baseline_images,
    gaussian_blur,
    perturbed_scores,
)
from timmscope.techniques.representation import RepresentationTechnique, Sheet, Table
from timmscope.techniques.result import Provenance, Result, load_result
from timmscope.techniques.session import (
    image_generators,
    images_per_forward,
    images_per_pass,
    noise_like,
)
from timmscope.techniques.style import StyleOutcome, StyleTechnique, Stylization
from timmscope.techniques.synthesis import Synthesis, SynthesisOutcome, SynthesisTechnique

__all__ = [
    "Adversarial",
    "AttackTechnique",
    "Attribution",
    "AttributionTechnique",
    "Baseline",
    "LayerName",
    "Provenance",
    "RepresentationTechnique",
    "Result",
    "Sheet",
    "StyleOutcome",
    "StyleTechnique",
    "Stylization",
    "Synthesis",
    "SynthesisOutcome",
    "SynthesisTechnique",
    "Table",
    "Technique",
    "baseline_images",
    "gaussian_blur",
    "image_generators",
    "images_per_forward",
    "images_per_pass",
    "load_result",
    "noise_like",
    "perturbed_scores",
]
