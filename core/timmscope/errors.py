"""Every error that timmscope raises on purpose; the tree stands in `timmscope_registry.errors`."""

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

__all__ = [
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
]
