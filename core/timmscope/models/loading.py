"""`load_model`: one text says which model, by scheme; plugins add schemes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from timmscope_registry import ModelError, get_registry, nearest
from timmscope_registry.contributions import by_scheme, instantiate

if TYPE_CHECKING:
    import torch

    from timmscope.models.hooked_model import HookedModel


def load_model(spec: str, *, device: str | torch.device | None = None) -> HookedModel:
    """Load a model by its id.

    Args:
        spec: `scheme:rest`, for example `timm:resnet50.a1_in1k` (the default scheme: a bare
            `resnet50` is timm's), `file:weights.safetensors?arch=resnet18`,
            `pip:efficientnet-lite0`, `random:vit_tiny_patch16_224?seed=0`. Arguments after `?`
            that the scheme does not know go to `timm.create_model`.
        device: where to put it; by default the CPU.

    Raises:
        ModelError: no such scheme or model, or its weights cannot be read.
        UnsupportedModel: timmscope cannot serve the architecture.
        PluginError: several plugins offer the scheme, or what the source makes is no model.
    """
    from timmscope.models.hooked_model import HookedModel

    text = spec if ":" in spec else f"timm:{spec}"
    entries = get_registry().model_sources()
    found = by_scheme(entries, text)
    if found is None:
        scheme, _, rest = text.partition(":")
        sources = {entry.spec.scheme for entry in entries}
        close = nearest(scheme, sources)
        hint = f"; did you mean {close[0]}:{rest}?" if close else ""
        raise ModelError(
            f"no model source is called {scheme!r} in {spec!r}; known: {', '.join(sorted(sources))}"
            + hint
        )
    if not found[1]:
        raise ModelError(f"{spec!r} names no model: expected {text}NAME")
    model = instantiate(*found, HookedModel)
    return model.to(device) if device is not None else model
