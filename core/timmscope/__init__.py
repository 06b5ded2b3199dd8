"""A microscope for vision models.

Point it at any timm model and see what it looks for, why it decides, and how it breaks::

    from timmscope import load_model, technique

    model = load_model("pip:efficientnet-lite0")
    cam = technique("grad-cam")()
    cam(model, model.images("cat.jpg"), "class:tiger cat").save("out")

Every public name is here; where it lives is private. Names are imported at first use, so that
``import timmscope`` costs nothing and the command line can list things without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from timmscope.evaluation import (
        CascadingRandomisation,
        Case,
        Deletion,
        Evaluation,
        Insertion,
        Measurement,
        Metric,
        PointingGame,
        SensitivityN,
        evaluate,
    )
    from timmscope.images import (
        ImageSource,
        open_image,
        open_images,
    )
    from timmscope.index import (
        Backend,
        Hits,
        VectorIndex,
    )
    from timmscope.lookup import (
        technique,
    )
    from timmscope.mining import (
        Collector,
        Column,
        LayerBatch,
        Patch,
        RowCollector,
        merge,
        mine,
        patch_views,
        top_patches,
    )
    from timmscope.models import (
        ClassNames,
        HookedModel,
        PassCounter,
        Preprocessing,
        load_model,
    )
    from timmscope.objectives import (
        Objective,
        as_objective,
        channel,
        class_logit,
        direction,
        layer_energy,
        neuron,
        parse_objective,
        top,
    )
    from timmscope.progress import (
        Reporter,
        reporting,
        task,
        track,
    )
    from timmscope.receptive_fields import (
        ReceptiveField,
        receptive_field,
    )
    from timmscope.store import (
        Store,
        StoreLayer,
        StorePictures,
        TopEntry,
    )
    from timmscope.techniques import (
        Adversarial,
        AttackTechnique,
        Attribution,
        AttributionTechnique,
        Baseline,
        CamTechnique,
        Comparison,
        DatasetComparison,
        Embedding,
        JudgedUnits,
        LayerName,
        LayerSimilarity,
        LayerView,
        Provenance,
        RepresentationTechnique,
        Result,
        Rows,
        Scores,
        Sheet,
        StyleOutcome,
        StyleTechnique,
        Stylization,
        Synthesis,
        SynthesisOutcome,
        SynthesisTechnique,
        Table,
        Technique,
        UnitNumbers,
        UnitPatches,
        baseline_images,
        chosen_units,
        compare,
        csv_text,
        default_layer,
        gaussian_blur,
        image_generators,
        images_per_forward,
        images_per_pass,
        layer_activation,
        layer_view,
        load_result,
        noise_like,
        perturbed_scores,
        unit_patches,
    )
    from timmscope.units import (
        UnitReport,
        UnitThresholds,
    )
    from timmscope_registry.errors import (
        ImageError,
        LayerNotFound,
        ModelError,
        ObjectiveError,
        ParameterError,
        PluginError,
        StoreCorrupted,
        StoreError,
        StoreMismatch,
        TechniqueError,
        TimmscopeError,
        UnsupportedModel,
        VectorIndexError,
    )

    __version__: str

__all__ = [
    "Adversarial",
    "AttackTechnique",
    "Attribution",
    "AttributionTechnique",
    "Backend",
    "Baseline",
    "CamTechnique",
    "CascadingRandomisation",
    "Case",
    "ClassNames",
    "Collector",
    "Column",
    "Comparison",
    "DatasetComparison",
    "Deletion",
    "Embedding",
    "Evaluation",
    "Hits",
    "HookedModel",
    "ImageError",
    "ImageSource",
    "Insertion",
    "JudgedUnits",
    "LayerBatch",
    "LayerName",
    "LayerNotFound",
    "LayerSimilarity",
    "LayerView",
    "Measurement",
    "Metric",
    "ModelError",
    "Objective",
    "ObjectiveError",
    "ParameterError",
    "PassCounter",
    "Patch",
    "PluginError",
    "PointingGame",
    "Preprocessing",
    "Provenance",
    "ReceptiveField",
    "Reporter",
    "RepresentationTechnique",
    "Result",
    "RowCollector",
    "Rows",
    "Scores",
    "SensitivityN",
    "Sheet",
    "Store",
    "StoreCorrupted",
    "StoreError",
    "StoreLayer",
    "StoreMismatch",
    "StorePictures",
    "StyleOutcome",
    "StyleTechnique",
    "Stylization",
    "Synthesis",
    "SynthesisOutcome",
    "SynthesisTechnique",
    "Table",
    "Technique",
    "TechniqueError",
    "TimmscopeError",
    "TopEntry",
    "UnitNumbers",
    "UnitPatches",
    "UnitReport",
    "UnitThresholds",
    "UnsupportedModel",
    "VectorIndex",
    "VectorIndexError",
    "__version__",
    "as_objective",
    "baseline_images",
    "channel",
    "chosen_units",
    "class_logit",
    "compare",
    "csv_text",
    "default_layer",
    "direction",
    "evaluate",
    "gaussian_blur",
    "image_generators",
    "images_per_forward",
    "images_per_pass",
    "layer_activation",
    "layer_energy",
    "layer_view",
    "load_model",
    "load_result",
    "merge",
    "mine",
    "neuron",
    "noise_like",
    "open_image",
    "open_images",
    "parse_objective",
    "patch_views",
    "perturbed_scores",
    "receptive_field",
    "reporting",
    "task",
    "technique",
    "top",
    "top_patches",
    "track",
    "unit_patches",
]

_HOMES = {
    "timmscope.evaluation": (
        "CascadingRandomisation",
        "Case",
        "Deletion",
        "Evaluation",
        "Insertion",
        "Measurement",
        "Metric",
        "PointingGame",
        "SensitivityN",
        "evaluate",
    ),
    "timmscope.images": (
        "ImageSource",
        "open_image",
        "open_images",
    ),
    "timmscope.index": (
        "Backend",
        "Hits",
        "VectorIndex",
    ),
    "timmscope.lookup": ("technique",),
    "timmscope.mining": (
        "Collector",
        "Column",
        "LayerBatch",
        "Patch",
        "RowCollector",
        "merge",
        "mine",
        "patch_views",
        "top_patches",
    ),
    "timmscope.models": (
        "ClassNames",
        "HookedModel",
        "PassCounter",
        "Preprocessing",
        "load_model",
    ),
    "timmscope.objectives": (
        "Objective",
        "as_objective",
        "channel",
        "class_logit",
        "direction",
        "layer_energy",
        "neuron",
        "parse_objective",
        "top",
    ),
    "timmscope.progress": (
        "Reporter",
        "reporting",
        "task",
        "track",
    ),
    "timmscope.receptive_fields": (
        "ReceptiveField",
        "receptive_field",
    ),
    "timmscope.store": (
        "Store",
        "StoreLayer",
        "StorePictures",
        "TopEntry",
    ),
    "timmscope.techniques": (
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
        "LayerView",
        "LayerName",
        "LayerSimilarity",
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
    ),
    "timmscope.units": (
        "UnitReport",
        "UnitThresholds",
    ),
    "timmscope_registry.errors": (
        "ImageError",
        "LayerNotFound",
        "ModelError",
        "ObjectiveError",
        "ParameterError",
        "PluginError",
        "StoreCorrupted",
        "StoreError",
        "StoreMismatch",
        "TechniqueError",
        "TimmscopeError",
        "UnsupportedModel",
        "VectorIndexError",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("timmscope")
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
