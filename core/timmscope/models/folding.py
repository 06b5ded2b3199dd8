"""Folds batch norms into the convolutions before them, on a copy of the model, for speed.

In eval mode a batch norm is one multiplication and one addition per channel, which the convolution
before it can do at no cost. Running the model shows which convolution passes its output to which
batch norm. The copy is used only if its layers have the same values as the model's.
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
from timmscope.models.views import sharing
from timmscope_registry import TimmscopeError
from timmscope_registry.hooks import Edge
from timmscope_registry.out_of_memory import is_out_of_memory

log = logging.getLogger("timmscope.models")

TOLERANCE = 1e-5
"""Largest accepted difference between copy and model at a layer, relative to its largest value."""

ROUNDING = 1e-4
"""Largest accepted difference of a layer's mean or RMS, relative to its RMS (root mean square)."""

_PROBE_COUNT = 2
"""Number of random images on which a copy is compared with the model."""
_LAYERS_AT_ONCE = 16
"""Number of layers whose values are in memory at a time for a comparison."""


def fold_batch_norms(model: HookedModel, layers: Sequence[str]) -> HookedModel | None:
    """Copy a model and fold its batch norms; return None if that would change one of `layers`.

    The copy shares all other weights with the model, which is not changed. Its layers have the same
    names, but a convolution into which a batch norm is folded is not a layer of the copy, because
    its output is different. Convolutions among `layers` keep their batch norms.

    Args:
        model: the model.
        layers: names of the layers that must stay equal, up to `TOLERANCE`.

    Returns:
        The copy. None if nothing can be folded, if a layer would change, or if the model has hooks
        from other code, has open contexts, or is not in float32.
    """
    if not _can_copy(model):
        return None
    names = {model.layers.resolve(name).name for name in layers}
    pairs = [pair for pair in _foldable_pairs(model) if not names & pair.points]
    twin = _copy_with_folded(model, pairs) if pairs else None
    if twin is None:
        return None
    differences = _differences(model, twin, sorted(names))
    if differences is None:
        log.info("batch norms are not folded: the folded copy does not run")
        return None
    worst = max(differences.values())
    if not worst <= TOLERANCE:
        log.info("batch norms are not folded: that would change a layer by %.2g", worst)
        return None
    log.info("%d batch norms folded; layers differ by at most %.2g", len(pairs), worst)
    return twin


def fused(model: HookedModel) -> HookedModel:
    """Copy a model with faster convolutions; return the model itself if a copy gains nothing.

    `HookedModel.fused` calls this function and says what is different in the copy.
    """
    if not _can_copy(model):
        log.info("not fused: the model has hooks or open contexts, or is not in float32")
        return model
    with torch.inference_mode(False):  # tensors made in inference mode have no derivatives
        return _fold_where_exact(model) or _pack(model) or model


def _fold_where_exact(model: HookedModel) -> HookedModel | None:
    """Copy a model and fold every batch norm that changes nothing but rounding.

    Return None if there are none, or if the copy still differs from the model.
    """
    pairs = _foldable_pairs(model)
    while pairs:
        twin = _copy_with_folded(model, pairs)
        consumers = [pair.consumer for pair in pairs]
        differences = _differences(model, twin, consumers) if twin is not None else None
        if twin is None or differences is None:
            return None
        exact = [pair for pair in pairs if differences[pair.consumer] <= TOLERANCE]
        if len(exact) == len(pairs):
            # A function outside the modules may use a convolution's output too; then later layers
            # differ although the batch norm's output does not.
            if not _is_equal(model, twin):
                return None
            log.info("%d batch norms folded", len(pairs))
            return twin
        pairs = exact
    return None


def _pack(model: HookedModel) -> HookedModel | None:
    """Copy a model and pack its convolutions without folding.

    Return None if no convolution can be packed, or if the copy differs from the model.
    """
    module = _copy_module(model.module)
    if module is None or not pack_convolutions(module):
        return None
    twin = _copy_around(model, module, {})
    return twin if _is_equal(model, twin) else None


def _foldable_pairs(model: HookedModel) -> list[Edge]:
    """List the convolutions that pass their output only to a batch norm, with that batch norm."""
    modules = dict(model.module.named_modules())
    return [pair for pair in model.hooks.dataflow_edges() if _is_foldable(pair, modules)]


def _copy_with_folded(model: HookedModel, pairs: list[Edge]) -> HookedModel | None:
    """Copy a model and fold these pairs; return None if it cannot be copied."""
    module = _copy_module(model.module)
    if module is None:
        return None
    for pair in pairs:
        _fold(module, pair.producer, pair.consumer)
    pack_convolutions(module)
    hidden = {
        name: f"{pair.consumer} is folded into it in this copy; use the model itself"
        for pair in pairs
        for name in pair.points
    }
    return _copy_around(model, module, hidden)


def _copy_module(module: nn.Module) -> nn.Module | None:
    """Copy a module but share its parameters and buffers; return None if that fails."""
    shared = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    try:
        return copy.deepcopy(module, shared)
    except Exception as error:  # a module may hold an object that cannot be copied
        if is_out_of_memory(error):
            raise
        log.info("the model cannot be copied: %s", error)
        return None


def _copy_around(model: HookedModel, module: nn.Module, hidden: Mapping[str, str]) -> HookedModel:
    """Copy a model around another module; preprocessing, class names and id stay the same.

    Args:
        model: the model.
        module: the module of the copy.
        hidden: names that are not layers of the copy, and why.
    """
    hooks = model.hooks.for_module(module, hidden)
    return sharing(model, module=module, hooks=hooks, weights_sha256=model.weights_sha256)


def _can_copy(model: HookedModel) -> bool:
    """Return whether a copy would behave like the model: float32, no hooks, no replaced forward."""
    return not (
        model.dtype != torch.float32
        or model.hooks.open_contexts
        or model.hooks.foreign_hooks()
        or any("forward" in vars(part) for part in model.module.modules())
    )


def _is_foldable(pair: Edge, modules: dict[str, nn.Module]) -> bool:
    """Return whether a pair is a 2d convolution and a batch norm with running statistics."""
    from timm.layers import BatchNormAct2d, Conv2dSame

    conv, norm = modules[pair.producer], modules[pair.consumer]
    return (
        type(conv) in (nn.Conv2d, Conv2dSame)
        and type(norm) in (nn.BatchNorm2d, BatchNormAct2d)
        and isinstance(norm, nn.BatchNorm2d)
        and isinstance(norm.running_mean, Tensor)
    )


def _fold(module: nn.Module, conv_name: str, norm_name: str) -> None:
    """Scale a convolution's weight and bias as its batch norm does, and remove the batch norm."""
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
    replace_parts(module, {norm: _replacement(norm)})


def _replacement(norm: nn.BatchNorm2d) -> nn.Module:
    """Return a module with a batch norm's children: timm's contain dropout and an activation."""
    children = nn.Sequential()
    for name, part in norm.named_children():
        children.add_module(name, part)
    return children if len(children) else nn.Identity()


def _differences(
    model: HookedModel, twin: HookedModel, names: Sequence[str]
) -> dict[str, float] | None:
    """Return the largest difference at each layer, relative to its largest value; inf for NaN.

    Return None if the copy does not run: a model's forward may read the `eps` of a batch norm that
    is gone, or call `view` on a tensor whose memory layout is different in the copy.
    """
    images = _probes(model)
    differences: dict[str, float] = {}
    try:
        for start in range(0, len(names), _LAYERS_AT_ONCE):
            some = names[start : start + _LAYERS_AT_ONCE]
            with torch.inference_mode():
                with model.record(*some) as expected:
                    model(images)
                with twin.record(*some) as actual:
                    twin(images)
                differences |= {name: _difference(expected[name], actual[name]) for name in some}
    except (RuntimeError, AttributeError, TimmscopeError) as error:
        if is_out_of_memory(error):  # otherwise the rows would depend on the free memory
            raise
        log.info("the copy does not run: %s", error)
        return None
    return differences


def _is_equal(model: HookedModel, twin: HookedModel) -> bool:
    """Return whether all layers of a copy and its output equal the model's, except for rounding.

    Only their means and root mean squares are compared. This takes one forward of each model and
    keeps no layer in memory.
    """
    images = _probes(model)
    try:
        if any(name not in model.layers for name in twin.layers):
            return False
        expected, actual = (_moments(each, images, list(twin.layers)) for each in (model, twin))
    except (RuntimeError, AttributeError, TimmscopeError) as error:
        if is_out_of_memory(error):  # otherwise the rows would depend on the free memory
            raise
        log.info("the copy does not run: %s", error)
        return False
    bound = ROUNDING * expected[:, 1:] + torch.finfo(torch.float32).tiny
    return bool(((actual - expected).abs() <= bound).all())


def _moments(model: HookedModel, images: Tensor, names: Sequence[str]) -> Tensor:
    """Return the mean and the root mean square of each layer, `(layers, 2)`."""
    moments: dict[str, Tensor] = {}

    def reader(name: str) -> Callable[[Tensor], None]:
        def read(value: Tensor) -> None:
            value = value.float()
            moments[name] = torch.stack([value.mean(), value.square().mean().sqrt()])

        return read

    with torch.inference_mode(), model.watch({name: reader(name) for name in names}):
        model(images)
    return torch.stack([moments[name] for name in names])


def _probes(model: HookedModel) -> Tensor:
    """Return images of uniform noise, `(_PROBE_COUNT, C, H, W)`, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(_PROBE_COUNT, *model.input_size, generator=generator)


def _difference(expected: Tensor, actual: Tensor) -> float:
    """Return the largest difference, relative to the largest expected value; inf for NaN."""
    scale = max(float(expected.abs().max()), torch.finfo(torch.float32).tiny)
    difference = float((actual - expected).abs().max()) / scale
    return difference if difference == difference else float("inf")
