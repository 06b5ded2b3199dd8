"""Batch norms folded into the convolutions before them, on a copy of the model.

In evaluation a batch norm is one multiplication and one addition a channel, which the convolution
before it can do for nothing. Which convolution hands its output to which norm is found by running
the model, and the copy counts only if it answers as the model does at every layer of interest.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from timmscope.models.hooked_model import HookedModel
from timmscope.models.packing import pack_convolutions
from timmscope_registry.hooks import Handover

log = logging.getLogger("timmscope.models")

TOLERANCE = 1e-5
"""Largest difference of a folded copy at a layer, as a share of the layer's largest value."""

_PROBES = 2
_AT_ONCE = 16
"""Layers that are held at a time to be compared."""


def fold_batch_norms(model: HookedModel, layers: Sequence[str]) -> HookedModel | None:
    """A copy of a model whose batch norms are folded away, None where that is not exact.

    The copy shares all other weights with the model, which is left as it was. Its layers have the
    same names, but a convolution with a batch norm folded into it is none any more, since its
    output is another. One among `layers` keeps its batch norm. A model with hooks of its caller's,
    with open contexts, or of another type than float32 is not folded.

    Args:
        model: the model.
        layers: names of the layers that must stay equal to `TOLERANCE`.
    """
    if not _is_copiable(model):
        return None
    names = {model.layers.resolve(name).name for name in layers}
    pairs = [pair for pair in _pairs(model) if not names & pair.points]
    twin = _folded(model, pairs) if pairs else None
    if twin is None:
        return None
    worst = max(_differences(model, twin, sorted(names)).values())
    if not worst <= TOLERANCE:
        log.info("batch norms stay: folding changes a layer by %.2g", worst)
        return None
    log.info("%d batch norms folded; layers differ by at most %.2g", len(pairs), worst)
    return twin


def fused(model: HookedModel) -> HookedModel:
    """What `HookedModel.fused` gives."""
    if not _is_copiable(model):
        log.info("not fused: the model is hooked, or of another type than float32")
        return model
    pairs = _pairs(model)
    while pairs:
        twin = _folded(model, pairs)
        if twin is None:
            return model
        # What a norm hands on changes first; a function that uses a convolution's own output, which
        # no module shows, changes the end.
        last = list(model.layers)[-1]
        worst = _differences(model, twin, [*(pair.taker for pair in pairs), last])
        good = [pair for pair in pairs if worst[pair.taker] <= TOLERANCE]
        if len(good) == len(pairs):
            if worst[last] <= TOLERANCE:
                log.info("%d batch norms folded", len(pairs))
                return twin
            break
        pairs = good
    module = _copied(model.module)
    if module is None or not pack_convolutions(module):
        return model
    return _around(model, module, {})


def _pairs(model: HookedModel) -> list[Handover]:
    """Convolutions that hand their output to nothing but a batch norm."""
    modules = dict(model.module.named_modules())
    return [pair for pair in model.hooks.handovers() if _foldable(pair, modules)]


def _folded(model: HookedModel, pairs: list[Handover]) -> HookedModel | None:
    """A copy with these pairs folded; None where there can be no copy."""
    module = _copied(model.module)
    if module is None:
        return None
    for pair in pairs:
        _fold(module, pair.giver, pair.taker)
    pack_convolutions(module)
    hidden = {
        name: f"{pair.taker} is folded into it in this copy; look at the model itself"
        for pair in pairs
        for name in pair.points
    }
    return _around(model, module, hidden)


def _copied(module: nn.Module) -> nn.Module | None:
    """A copy that shares all parameters and buffers; None where a module cannot be copied."""
    shared = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    try:
        return copy.deepcopy(module, shared)
    except Exception as error:  # modules may hold what cannot be copied
        log.info("the model cannot be copied: %s", error)
        return None


def _around(model: HookedModel, module: nn.Module, hidden: Mapping[str, str]) -> HookedModel:
    """The same preprocessing, class names and identity around another module."""
    twin = copy.copy(model)
    vars(twin)["weights_sha256"] = model.weights_sha256
    twin.module = module
    twin.hooks = model.hooks.around(module, hidden)
    return twin


def _is_copiable(model: HookedModel) -> bool:
    return not (
        model.dtype != torch.float32 or model.hooks.open_contexts or _is_hooked(model.module)
    )


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


def _differences(model: HookedModel, twin: HookedModel, names: list[str]) -> dict[str, float]:
    """The largest difference at each layer as a share of its largest value; NaN counts."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(_PROBES, *model.input_size, generator=generator)
    found: dict[str, float] = {}
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        with torch.inference_mode():
            with model.record(*some) as one:
                model(images)
            with twin.record(*some) as other:
                twin(images)
            found |= {name: _share(one[name], other[name]) for name in some}
    return found


def _share(true: Tensor, other: Tensor) -> float:
    scale = max(float(true.abs().max()), torch.finfo(torch.float32).tiny)
    share = float((other - true).abs().max()) / scale
    return share if share == share else float("inf")
