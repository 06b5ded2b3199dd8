"""Batch norms folded into the convolutions before them, on a copy of the model.

In evaluation a batch norm is one multiplication and one addition a channel, which the convolution
before it can do for nothing. Which convolution hands its output to which norm is found by running
the model, and the copy counts only if it answers as the model does at every layer of interest.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from timmscope.models.hooked_model import HookedModel
from timmscope_registry.hooks import Handover

log = logging.getLogger("timmscope.models")

TOLERANCE = 1e-5
"""Largest difference of a folded copy at a layer, as a share of the layer's largest value."""

_PROBES = 2


def fold_batch_norms(model: HookedModel, layers: Sequence[str]) -> HookedModel | None:
    """A copy of a model whose batch norms are folded away, None where that is not exact.

    The copy shares all other weights with the model, which is left as it was. Its layers have the
    same names. A convolution among `layers` keeps its batch norm, since its own output would
    change. A model with hooks of its caller's, with open contexts, or of another type than float32
    is not folded.

    Args:
        model: the model.
        layers: names of the layers that must stay equal to `TOLERANCE`.
    """
    module = model.module
    if model.dtype != torch.float32 or model.hooks.open_contexts or _is_hooked(module):
        return None
    names = {model.layers.resolve(name).name for name in layers}
    modules = dict(module.named_modules())
    pairs = [
        (pair.giver, pair.taker)
        for pair in model.hooks.handovers()
        if _foldable(pair, modules) and not names & pair.points
    ]
    if not pairs:
        return None
    shared = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    try:
        twin = copy.deepcopy(module, shared)
    except Exception as error:  # modules may hold what cannot be copied
        log.info("batch norms stay: the model cannot be copied (%s)", error)
        return None
    for conv, norm in pairs:
        _fold(twin, conv, norm)
    folded = _around(model, twin)
    worst = _difference(model, folded, sorted(names))
    if not worst <= TOLERANCE:
        log.info("batch norms stay: folding changes a layer by %.2g", worst)
        return None
    log.info("%d batch norms folded; layers differ by at most %.2g", len(pairs), worst)
    return folded


def _around(model: HookedModel, module: nn.Module) -> HookedModel:
    """The same preprocessing and class names around another module."""
    twin = copy.copy(model)
    vars(twin).pop("weights_sha256", None)
    twin.module = module
    twin.hooks = model.hooks.around(module)
    return twin


def _is_hooked(module: nn.Module) -> bool:
    """Whether someone else listens to the model or has replaced a forward."""
    return any(
        part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part)
        for part in module.modules()
    )


def _foldable(pair: Handover, modules: dict[str, nn.Module]) -> bool:
    from timm.layers import BatchNormAct2d, Conv2dSame

    conv, norm = modules[pair.giver], modules[pair.taker]
    return (
        type(conv) in (nn.Conv2d, Conv2dSame)
        and type(norm) in (nn.BatchNorm2d, BatchNormAct2d)
        and isinstance(norm, nn.BatchNorm2d)
        and isinstance(norm.running_mean, Tensor)
    )


def _fold(module: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = module.get_submodule(conv_name), module.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        bias = -norm.running_mean.double() if conv.bias is None else conv.bias - norm.running_mean
        bias = bias * scale
        if norm.bias is not None:
            bias = bias + norm.bias
        weight = conv.weight.double() * scale[:, None, None, None]
        conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
        conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
    path, _, last = norm_name.rpartition(".")
    setattr(module.get_submodule(path), last, _rest(norm))


def _rest(norm: nn.BatchNorm2d) -> nn.Module:
    """What is left of a batch norm: timm's carry dropout and an activation, under their names."""
    left = nn.Sequential()
    for name, part in norm.named_children():
        left.add_module(name, part)
    return left if len(left) else nn.Identity()


def _difference(model: HookedModel, folded: HookedModel, names: list[str]) -> float:
    """The largest difference at a layer as a share of its largest value; NaN counts."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(_PROBES, *model.input_size, generator=generator)
    worst = 0.0
    with torch.inference_mode():
        with model.record(*names) as one:
            model(images)
        with folded.record(*names) as other:
            folded(images)
        for name in names:
            worst = max(worst, _share(one[name], other[name]))
    return worst


def _share(true: Tensor, other: Tensor) -> float:
    scale = max(float(true.abs().max()), torch.finfo(torch.float32).tiny)
    share = float((other - true).abs().max()) / scale
    return share if share == share else float("inf")
