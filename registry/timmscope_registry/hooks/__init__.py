"""Hooks on any timm model: record and edit activations, cut the graph, change backward rules.

Only this package uses forward hooks and autograd nodes, and it leaves the model unchanged. Start
with `ModelHooks`.
"""

from timmscope_registry.hooks.torchvision_compat import ensure_torchvision

ensure_torchvision()

from timmscope_registry.hooks.activations import ActivationCall  # noqa: E402
from timmscope_registry.hooks.contexts import Cut, Recording  # noqa: E402
from timmscope_registry.hooks.dataflow import Edge  # noqa: E402
from timmscope_registry.hooks.fingerprint import Fingerprint, fingerprint  # noqa: E402
from timmscope_registry.hooks.layers import LOGITS, Layer, LayerCatalogue, Layout  # noqa: E402
from timmscope_registry.hooks.model_hooks import ModelHooks  # noqa: E402
from timmscope_registry.hooks.random_numbers import OwnGenerators  # noqa: E402
from timmscope_registry.hooks.rules import BackwardRule, deconvnet, guided, redirected  # noqa: E402

__all__ = [
    "LOGITS",
    "ActivationCall",
    "BackwardRule",
    "Cut",
    "Edge",
    "Fingerprint",
    "Layer",
    "LayerCatalogue",
    "Layout",
    "ModelHooks",
    "OwnGenerators",
    "Recording",
    "deconvnet",
    "ensure_torchvision",
    "fingerprint",
    "guided",
    "redirected",
]
