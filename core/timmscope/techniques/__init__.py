"""Techniques: parameters plus one method; and the results the families return."""

from timmscope.techniques.attack import Adversarial, AttackTechnique
from timmscope.techniques.attribution import Attribution, AttributionTechnique
from timmscope.techniques.base import LayerName, Technique
from timmscope.techniques.cam import CamTechnique
from timmscope.techniques.comparison import Comparison, compare
from timmscope.techniques.csv_text import csv_text
from timmscope.techniques.dataset_comparison import DatasetComparison
from timmscope.techniques.default_layer import default_layer
from timmscope.techniques.embedding import Embedding
from timmscope.techniques.judged_units import JudgedUnits
from timmscope.techniques.layer_similarity import LayerSimilarity
from timmscope.techniques.layer_views import LayerView, layer_activation, layer_view
from timmscope.techniques.patch_book import UnitPatches, unit_patches
from timmscope.techniques.perturbation import (
    Baseline,
    baseline_images,
    gaussian_blur,
    perturbed_scores,
)
from timmscope.techniques.representation import RepresentationTechnique, Sheet, Table
from timmscope.techniques.result import Provenance, Result, load_result
from timmscope.techniques.rows import Rows
from timmscope.techniques.scores import Scores
from timmscope.techniques.session import (
    image_generators,
    images_per_forward,
    images_per_pass,
    noise_like,
)
from timmscope.techniques.style import StyleOutcome, StyleTechnique, Stylization
from timmscope.techniques.synthesis import Synthesis, SynthesisOutcome, SynthesisTechnique
from timmscope.techniques.unit_numbers import UnitNumbers, chosen_units

__all__ = [
    "Adversarial",
    "AttackTechnique",
    "Attribution",
    "AttributionTechnique",
    "Baseline",
    "CamTechnique",
    "Comparison",
    "DatasetComparison",
    "Embedding",
    "JudgedUnits",
    "LayerName",
    "LayerSimilarity",
    "LayerView",
    "Provenance",
    "RepresentationTechnique",
    "Result",
    "Rows",
    "Scores",
    "Sheet",
    "StyleOutcome",
    "StyleTechnique",
    "Stylization",
    "Synthesis",
    "SynthesisOutcome",
    "SynthesisTechnique",
    "Table",
    "Technique",
    "UnitNumbers",
    "UnitPatches",
    "baseline_images",
    "chosen_units",
    "compare",
    "csv_text",
    "default_layer",
    "gaussian_blur",
    "image_generators",
    "images_per_forward",
    "images_per_pass",
    "layer_activation",
    "layer_view",
    "load_result",
    "noise_like",
    "perturbed_scores",
    "unit_patches",
]
