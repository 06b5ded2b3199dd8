"""Batch norms folded into the convolutions before them, on a copy of the model.

In evaluation a batch norm is one multiplication and one addition a channel, which the convolution
before it can do for nothing. Which convolution hands its output to which norm is found by running
the model, and the copy counts only if it answers as the model does at every layer of interest.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from timmscope.models.hooked_model import HookedModel
from timmscope.models.packing import pack_convolutions, replace_parts
from timmscope_registry import TimmscopeError
from timmscope_registry.hooks import Edge

log = logging.getLogger("timmscope.models")

TOLERANCE = 1e-5
"""Largest difference of a folded copy at a layer, as a share of the layer's largest value."""

ROUNDING = 1e-4
"""Largest difference of a layer's mean or root mean square, as a share of the latter."""

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
    found = _differences(model, twin, sorted(names))
    if found is None:
        log.info("batch norms stay: the folded copy does not run")
        return None
    worst = max(found.values())
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
    with torch.inference_mode(False):  # what is made inside may not be differentiated later
        return _folded_where_exact(model) or _packed(model) or model


def _folded_where_exact(model: HookedModel) -> HookedModel | None:
    """A copy without those norms that can be folded exactly; None where there are none."""
    pairs = _pairs(model)
    while pairs:
        twin = _folded(model, pairs)
        consumers = [pair.consumer for pair in pairs]
        worst = _differences(model, twin, consumers) if twin is not None else None
        if twin is None or worst is None:
            return None
        good = [pair for pair in pairs if worst[pair.consumer] <= TOLERANCE]
        if len(good) == len(pairs):
            # A function that uses a convolution's own output, which no module shows, changes more.
            if not _is_alike(model, twin):
                return None
            log.info("%d batch norms folded", len(pairs))
            return twin
        pairs = good
    return None


def _packed(model: HookedModel) -> HookedModel | None:
    """A copy whose weights are reordered and nothing else; None where that is no gain."""
    module = _copied(model.module)
    if module is None or not pack_convolutions(module):
        return None
    twin = _around(model, module, {})
    return twin if _is_alike(model, twin) else None


def _pairs(model: HookedModel) -> list[Edge]:
    """Convolutions that hand their output to nothing but a batch norm."""
    modules = dict(model.module.named_modules())
    return [pair for pair in model.hooks.dataflow_edges() if _foldable(pair, modules)]


def _folded(model: HookedModel, pairs: list[Edge]) -> HookedModel | None:
    """A copy with these pairs folded; None where there can be no copy."""
    module = _copied(model.module)
    if module is None:
        return None
    for pair in pairs:
        _fold(module, pair.producer, pair.consumer)
    pack_convolutions(module)
    hidden = {
        name: f"{pair.consumer} is folded into it in this copy; look at the model itself"
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
    twin.hooks = model.hooks.for_module(module, hidden)
    return twin


def _is_copiable(model: HookedModel) -> bool:
    return not (model.dtype != torch.float32 or model.hooks.open_contexts or _is_hooked(model))


def _is_hooked(model: HookedModel) -> bool:
    """Whether someone else listens to the model or has replaced a forward."""
    return bool(model.hooks.foreign_hooks()) or any(
        "forward" in vars(part) for part in model.module.modules()
    )


def _foldable(pair: Edge, modules: dict[str, nn.Module]) -> bool:
    from timm.layers import BatchNormAct2d, Conv2dSame

    conv, norm = modules[pair.producer], modules[pair.consumer]
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
    replace_parts(module, {norm: _rest(norm)})


def _rest(norm: nn.BatchNorm2d) -> nn.Module:
    """What is left of a batch norm: timm's carry dropout and an activation, under their names."""
    left = nn.Sequential()
    for name, part in norm.named_children():
        left.add_module(name, part)
    return left if len(left) else nn.Identity()


def _differences(
    model: HookedModel, twin: HookedModel, names: Sequence[str]
) -> dict[str, float] | None:
    """The largest difference at each layer as a share of its largest value; NaN counts.

    None where the copy does not run: a forward may ask a norm for its `eps`, or lay a tensor out
    anew by `view`.
    """
    images = _probes(model)
    found: dict[str, float] = {}
    try:
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            with torch.inference_mode():
                with model.record(*some) as one:
                    model(images)
                with twin.record(*some) as other:
                    twin(images)
                found |= {name: _share(one[name], other[name]) for name in some}
    except (RuntimeError, AttributeError, TimmscopeError) as error:
        log.info("the copy does not run: %s", error)
        return None
    return found


def _is_alike(model: HookedModel, twin: HookedModel) -> bool:
    """Whether all layers of a copy, and its end, are the model's but for what rounding adds up to.

    Means and root mean squares are compared, which needs one forward each and keeps no layer.
    """
    images = _probes(model)
    try:
        if any(name not in model.layers for name in twin.layers):
            return False
        one, other = (_moments(each, images, list(twin.layers)) for each in (model, twin))
    except (RuntimeError, AttributeError, TimmscopeError) as error:
        log.info("the copy does not run: %s", error)
        return False
    bound = ROUNDING * one[:, 1:] + torch.finfo(torch.float32).tiny
    return bool(((other - one).abs() <= bound).all())


def _moments(model: HookedModel, images: Tensor, names: Sequence[str]) -> Tensor:
    """Mean and root mean square of each layer, `(layers, 2)`."""
    found: dict[str, Tensor] = {}

    def look(name: str) -> Callable[[Tensor], None]:
        def take(value: Tensor) -> None:
            value = value.float()
            found[name] = torch.stack([value.mean(), value.square().mean().sqrt()])

        return take

    with torch.inference_mode(), model.watch({name: look(name) for name in names}):
        model(images)
    return torch.stack([found[name] for name in names])


def _probes(model: HookedModel) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(_PROBES, *model.input_size, generator=generator)


def _share(true: Tensor, other: Tensor) -> float:
    scale = max(float(true.abs().max()), torch.finfo(torch.float32).tiny)
    share = float((other - true).abs().max()) / scale
    return share if share == share else float("inf")
