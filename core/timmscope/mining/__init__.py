"""Mining: one pass of a model over a data set, kept in a store that survives being killed."""

from .collectors import (
    Collector,
    Column,
    Extrema,
    LayerBatch,
    Maps,
    Pooled,
    RowCollector,
    Statistics,
    TopK,
)
from .merge import merge
from .mine import mine, resume
from .patch_views import patch_views
from .patches import Patch, top_patches
from .plan import Plan, bytes_per_image, default_layers

__all__ = [
    "Collector",
    "Column",
    "Extrema",
    "LayerBatch",
    "Maps",
    "Patch",
    "Plan",
    "Pooled",
    "RowCollector",
    "Statistics",
    "TopK",
    "bytes_per_image",
    "default_layers",
    "merge",
    "mine",
    "patch_views",
    "resume",
    "top_patches",
]
