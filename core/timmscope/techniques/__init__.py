"""Techniques: parameters plus one method; and the results the families return."""

from timmscope.techniques.attack import Adversarial, AttackTechnique
from timmscope.techniques.attribution import Attribution, AttributionTechnique
from timmscope.techniques.base import LayerName, Technique
from timmscope.techniques.representation import RepresentationTechnique, Sheet, Table
from timmscope.techniques.result import Provenance, Result, load_result
from timmscope.techniques.session import image_generators, noise_like
from timmscope.techniques.style import StyleOutcome, StyleTechnique, Stylization
from timmscope.techniques.synthesis import Synthesis, SynthesisOutcome, SynthesisTechnique

__all__ = [
    "Adversarial",
    "AttackTechnique",
    "Attribution",
    "AttributionTechnique",
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
    "image_generators",
    "load_result",
    "noise_like",
]
