"""Loads the digits networks that are committed as test data."""

from __future__ import annotations

from pathlib import Path

from timmscope import HookedModel, load_model
from timmscope_registry import get_registry

NETWORKS = Path(__file__).parent / "networks"
"""One folder per network, as a training leaves it."""
_PLUGIN = Path(__file__).parent / "plugin.py"


def register() -> None:
    """Make `digits:cnn?seed=0` known to this process, unless it is."""
    if all(entry.spec.scheme != "digits" for entry in get_registry().model_sources()):
        get_registry().load_file(_PLUGIN)


def digits_network(name: str) -> HookedModel:
    """Load a trained network: `standard`, `fast`, `pgd`, `trades` or `ibp`."""
    register()
    return load_model(f"file:{NETWORKS / name}")
