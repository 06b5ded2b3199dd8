"""Defines the base classes of techniques, what they share, and the results they return."""

from timmscope.techniques.analysis import ModelTechnique
from timmscope.techniques.ascent import (
    BestImages,
    Climb,
    CppnParameterisation,
    CropViews,
    FourierParameterisation,
    GradientCheck,
    LaplacianParameterisation,
    NormalisedSteps,
    Parameterisation,
    PhaseParameterisation,
    PixelParameterisation,
    RandomViews,
    SynthesisOutcome,
    Views,
    alpha_norm,
    check_size,
    falling_spectrum,
    frame_steps,
    loop_model,
    mean_spectrum,
    memory_format,
    total_variation,
)
from timmscope.techniques.attack import Adversarial, AttackTechnique
from timmscope.techniques.attribution import Attribution, AttributionTechnique
from timmscope.techniques.balls import (
    Ball,
    Norm,
    change_size,
    project_change,
    projected_ascent,
)
from timmscope.techniques.base import Technique
from timmscope.techniques.box_projections import project_l1_in_box, step_to_plane
from timmscope.techniques.cam import CamTechnique
from timmscope.techniques.certification import (
    Certificates,
    CertificationOutcome,
    CertificationTechnique,
)
from timmscope.techniques.default_layer import default_layer
from timmscope.techniques.defence import DefenceTechnique, Defended
from timmscope.techniques.expectation import mean_over_draws
from timmscope.techniques.goal import Goal, Loss
from timmscope.techniques.image_set import ImageSet
from timmscope.techniques.lookup import technique
from timmscope.techniques.names import (
    ImageName,
    ImageSetName,
    LayerName,
    ModelName,
    NetworkName,
    StoreName,
    TechniqueName,
    WeightsName,
)
from timmscope.techniques.nearest_found import NearestFound
from timmscope.techniques.over.base import PerImageTechnique
from timmscope.techniques.over.result import ImageSetRun
from timmscope.techniques.perturbation import (
    Baseline,
    baseline_images,
    gaussian_blur,
    perturbed_scores,
)
from timmscope.techniques.rows import Rows
from timmscope.techniques.session import (
    image_generators,
    images_per_forward,
    images_per_pass,
    noise_like,
)
from timmscope.techniques.shared_gradients import LayerView, layer_activation, layer_view
from timmscope.techniques.store_analysis import StoresTechnique, StoreTechnique
from timmscope.techniques.style import StyleOutcome, StyleTechnique, Stylization
from timmscope.techniques.synthesis import (
    Synthesis,
    SynthesisTechnique,
    per_image,
)
from timmscope.techniques.trained_weights import TrainedWeights
from timmscope.techniques.training import (
    Training,
    TrainingBatch,
    TrainingProgress,
    TrainingTechnique,
    evaluating,
)
from timmscope.techniques.unit_numbers import UnitNumbers, chosen_units
from timmscope.techniques.universal import ImageBatches, UniversalAttack
from timmscope.techniques.universal_perturbation import UniversalPerturbation

__all__ = [
    "Adversarial",
    "AttackTechnique",
    "Attribution",
    "AttributionTechnique",
    "Ball",
    "Baseline",
    "BestImages",
    "CamTechnique",
    "Certificates",
    "CertificationOutcome",
    "CertificationTechnique",
    "Climb",
    "CppnParameterisation",
    "CropViews",
    "DefenceTechnique",
    "Defended",
    "FourierParameterisation",
    "Goal",
    "GradientCheck",
    "ImageBatches",
    "ImageName",
    "ImageSet",
    "ImageSetName",
    "ImageSetRun",
    "LaplacianParameterisation",
    "LayerName",
    "LayerView",
    "Loss",
    "ModelName",
    "ModelTechnique",
    "NearestFound",
    "NetworkName",
    "Norm",
    "NormalisedSteps",
    "Parameterisation",
    "PerImageTechnique",
    "PhaseParameterisation",
    "PixelParameterisation",
    "RandomViews",
    "Rows",
    "StoreName",
    "StoreTechnique",
    "StoresTechnique",
    "StyleOutcome",
    "StyleTechnique",
    "Stylization",
    "Synthesis",
    "SynthesisOutcome",
    "SynthesisTechnique",
    "Technique",
    "TechniqueName",
    "TrainedWeights",
    "Training",
    "TrainingBatch",
    "TrainingProgress",
    "TrainingTechnique",
    "UnitNumbers",
    "UniversalAttack",
    "UniversalPerturbation",
    "Views",
    "WeightsName",
    "alpha_norm",
    "baseline_images",
    "change_size",
    "check_size",
    "chosen_units",
    "default_layer",
    "evaluating",
    "falling_spectrum",
    "frame_steps",
    "gaussian_blur",
    "image_generators",
    "images_per_forward",
    "images_per_pass",
    "layer_activation",
    "layer_view",
    "loop_model",
    "mean_over_draws",
    "mean_spectrum",
    "memory_format",
    "noise_like",
    "per_image",
    "perturbed_scores",
    "project_change",
    "project_l1_in_box",
    "projected_ascent",
    "step_to_plane",
    "technique",
    "total_variation",
]
