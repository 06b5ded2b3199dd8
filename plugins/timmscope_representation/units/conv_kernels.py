"""The kernels of a model's layers, and how their weights relate to pixels and channels.

For a convolution the module's attributes say so. For a linear layer over patches they do not: which
input is which pixel is found by passing images without equal pixels through the model, and matching
the values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from timmscope import HookedModel, LayerNotFound, UnsupportedModel


@dataclass(frozen=True)
class Kernels:
    """The kernels of one layer.

    Attributes:
        layer: its name.
        weight: `(n, c, h, w)` float32.
        on_pixels: whether they act on the image itself, so that `c` is the number of colours.
        groups: number of groups of units and input channels.
    """

    layer: str
    weight: Tensor
    on_pixels: bool
    groups: int = 1

    def inputs(self, unit: int) -> range:
        """The input channels of a unit, one for each of its `c` slices."""
        count, taps = self.weight.shape[:2]
        first = unit // (count // self.groups) * taps
        return range(first, first + taps)


def first_kernels(model: HookedModel) -> Kernels:
    """The kernels used first in a forward pass: of a convolution, or a linear layer over patches.

    Raises:
        UnsupportedModel: there is no such layer.
    """
    for name, module in _modules(model):
        if isinstance(module, nn.Conv2d):
            return _of_convolution(name, module, on_pixels=_on_pixels(model, name))
        if isinstance(module, nn.Linear) and (found := _of_linear(model, name, module)) is not None:
            return found
    first = ", ".join(
        f"{layer.name} ({layer.module_type})" for layer in list(model.layers.values())[:3]
    )
    raise UnsupportedModel(
        f"{model.id} has neither a 2-d convolution nor a linear layer over patches whose filters "
        f"could be shown; it begins with {first}"
    )


def kernels_of(model: HookedModel, layer: str) -> Kernels:
    """The kernels of a layer by name.

    Raises:
        LayerNotFound: the model has no such layer, or it has no kernels.
    """
    name = model.layers[layer].name.partition("#")[0]
    module = model.module.get_submodule(name) if name in dict(_modules(model)) else None
    if isinstance(module, nn.Conv2d):
        return _of_convolution(name, module, on_pixels=_on_pixels(model, name))
    if isinstance(module, nn.Linear) and (found := _of_linear(model, name, module)) is not None:
        return found
    near = nearest_convolutions(model, name)
    hint = f"; nearest convolutions: {', '.join(near)}" if near else ""
    raise LayerNotFound(
        f"{name} of {model.id} is {_article(model.layers[layer].module_type)} and has no "
        f"kernels{hint}",
        name=name,
        nearest=near,
    )


def nearest_convolutions(model: HookedModel, layer: str, *, least: int = 1) -> tuple[str, ...]:
    """Up to three convolutions with kernels of some size: parts of a layer, else the next in order.

    Args:
        model: the model.
        layer: its name.
        least: smallest area of a kernel in cells.
    """
    names = [name.partition("#")[0] for name in model.layers]
    places = {
        name: names.index(name)
        for name, module in _modules(model)
        if isinstance(module, nn.Conv2d) and int(np.prod(module.kernel_size)) >= least
    }
    here = names.index(layer)
    inside = [name for name in places if name.startswith(f"{layer}.")]
    others = sorted(places, key=lambda name: abs(places[name] - here))
    return tuple(dict.fromkeys(name for name in [*inside, *others] if name != layer))[:3]


def _modules(model: HookedModel) -> Iterator[tuple[str, nn.Module]]:
    """Layers that are modules, with the module's name, in execution order."""
    modules = dict(model.module.named_modules())
    for name in dict.fromkeys(name.partition("#")[0] for name in model.layers):
        if name in modules:
            yield name, modules[name]


def _of_convolution(name: str, module: nn.Conv2d, *, on_pixels: bool) -> Kernels:
    return Kernels(name, module.weight.detach().float().cpu(), on_pixels, module.groups)


def _on_pixels(model: HookedModel, name: str) -> bool:
    """Whether the input of a convolution is the image itself, normalised or padded."""
    module = model.module.get_submodule(name)
    if not isinstance(module, nn.Conv2d) or module.in_channels != model.input_size[0]:
        return False
    image, given = _matching_inputs(model, name)
    found = np.isin(given.numpy().ravel(), [*image.numpy().ravel().tolist(), 0.0])
    return bool(found.all())


def _of_linear(model: HookedModel, name: str, module: nn.Linear) -> Kernels | None:
    """Kernels of a linear layer whose inputs are the pixels of a patch, each once; else None."""
    image, given = _matching_inputs(model, name)  # (2, c, H, W), (2, …, inputs)
    weight = module.weight.detach().float().cpu()
    rows = given.reshape(2, -1, given.shape[-1])
    if rows.shape[2] != weight.shape[1]:
        return None
    # Two images, because a pixel may have an equal one in another colour after normalisation.
    place = {pair: at for at, pair in enumerate(zip(*image.flatten(1).tolist(), strict=True))}
    first = [place.get(pair, -1) for pair in zip(*rows[:, 0].tolist(), strict=True)]
    if -1 in first or len(set(first)) < len(first):
        return None
    colour, y, x = np.unravel_index(np.array(first), tuple(image.shape[1:]))
    size = (image.shape[1], int(np.ptp(y)) + 1, int(np.ptp(x)) + 1)
    if int(np.prod(size)) != len(first):
        return None  # some pixels of the patch are missing
    kernels = torch.empty(len(weight), *size)
    kernels[:, colour, y - y.min(), x - x.min()] = weight
    return Kernels(name, kernels, on_pixels=True)


def _matching_inputs(model: HookedModel, name: str) -> tuple[Tensor, Tensor]:
    """Two normalised images without equal pixels, and the input of a module for them."""
    size = model.input_size
    count = int(np.prod(size))
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(count, generator=generator).view(size) for _ in range(2)]
    images = ((torch.stack(orders) + 0.5) / count).to(model.device)
    given_inputs: list[Tensor] = []
    with (
        torch.no_grad(),
        model.hooks.watch_inputs(
            {name: lambda given: given_inputs.append(given.detach().cpu().clone())}
        ),
        model.record(name),
    ):
        model(images)
    normalised = model.preprocessing.normalise(images.to(model.dtype)).cpu()
    return normalised.double(), given_inputs[0].double()


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}"
