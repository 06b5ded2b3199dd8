"""The plugin registry, and in `timmscope_registry.hooks` the hooks on models.

A plugin's ``plugin.py`` imports from this top level, which never imports torch.
"""

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
from timmscope_registry.hookspecs import hookimpl
from timmscope_registry.plugin_record import PluginInfo, Problem
from timmscope_registry.registry import Entry, Registry, get_registry, set_registry
from timmscope_registry.resolve import did_you_mean, import_string, nearest
from timmscope_registry.specs import (
    API_VERSION,
    BASES,
    FAMILIES,
    GROUP,
    CollectorSpec,
    Family,
    ImageSourceSpec,
    IndexBackendSpec,
    ModelSourceSpec,
    TechniqueSpec,
)

__all__ = [
    "API_VERSION",
    "BASES",
    "FAMILIES",
    "GROUP",
    "CollectorSpec",
    "Entry",
    "Family",
    "ImageError",
    "ImageSourceSpec",
    "IndexBackendSpec",
    "LayerNotFound",
    "ModelError",
    "ModelSourceSpec",
    "ObjectiveError",
    "ParameterError",
    "PluginError",
    "PluginInfo",
    "Problem",
    "Registry",
    "StoreCorrupted",
    "StoreError",
    "StoreMismatch",
    "TechniqueError",
    "TechniqueSpec",
    "TimmscopeError",
    "UnsupportedModel",
    "VectorIndexError",
    "did_you_mean",
    "get_registry",
    "hookimpl",
    "import_string",
    "nearest",
    "set_registry",
]
