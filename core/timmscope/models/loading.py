"""`load_model` loads a model by an id such as `timm:resnet50`; plugins add further schemes."""

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
        spec: `scheme:rest`, for example `timm:resnet50.a1_in1k`, `pip:efficientnet-lite0`,
            `file:weights.safetensors?arch=resnet18` or `random:vit_tiny_patch16_224?seed=0`.
            Without a scheme, `timm:` is assumed. Of the arguments after `?`, `class_names` (a text
            file), `mean`, `std`, `input_size`, `crop_pct` and `interpolation` are those of
            `HookedModel`; the built-in schemes pass all others to `timm.create_model`.
        device: the device; by default the CPU.

    Raises:
        ModelError: there is no such scheme or model, or its weights cannot be read.
        UnsupportedModel: timmscope does not support the architecture.
        PluginError: several plugins offer the scheme, or the source does not return a model.
    """
    from timmscope.models.hooked_model import HookedModel

    text = spec if ":" in spec else f"timm:{spec}"
    entries = get_registry().model_sources()
    match = by_scheme(entries, text)
    if match is None:
        scheme, _, rest = text.partition(":")
        sources = {entry.spec.scheme for entry in entries}
        close = nearest(scheme, sources)
        hint = f"; did you mean {close[0]}:{rest}?" if close else ""
        if scheme in ("hf-hub", "local-dir"):
            hint = f"; did you mean timm:{text}?"
        raise ModelError(
            f"no model source is called {scheme!r} in {spec!r}; known: {', '.join(sorted(sources))}"
            + hint
        )
    if not match[1]:
        raise ModelError(f"{spec!r} names no model: expected {text}NAME")
    model = instantiate(*match, HookedModel)
    return model.to(device) if device is not None else model
