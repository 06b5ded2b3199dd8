"""Builds the layer catalogue from one traced forward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor, nn

from timmscope_registry.hooks.layers import LOGITS, Layer, LayerCatalogue
from timmscope_registry.hooks.layout import LayoutReader, Reading
from timmscope_registry.hooks.order import token_orders
from timmscope_registry.hooks.points import HookPoints
from timmscope_registry.hooks.trace import Call


def build_catalogue(
    module: nn.Module, example: Tensor, calls: list[Call], hidden: Mapping[str, str]
) -> tuple[LayerCatalogue, HookPoints]:
    """Describe the layers of `module`.

    Args:
        module: the model.
        example: one or more normalised inputs, (B, C, H, W).
        calls: the calls of a forward traced on it.
        hidden: modules to leave out, by name, with the reason.

    Returns:
        The catalogue, and all hook points; every layer is a hook point.
    """
    counts = Counter(call.path for call in calls)
    colours, height, width = (int(size) for size in example.shape[1:])
    image = (height, width)
    modules = dict(module.named_modules())
    reader = LayoutReader((colours, height, width), modules)
    orders = token_orders(modules, calls)
    layers: list[Layer] = []
    aliases: dict[str, str] = {}
    refused: dict[str, str] = {}
    for call in calls:
        outcome = reader.read(call)  # also of hidden modules: later calls are read from it
        outcome = hidden.get(call.path, outcome)
        path = call.path or LOGITS
        last = call.number == counts[call.path] - 1
        numbered = f"{path}#{call.number}"
        name = path if last else numbered
        if isinstance(outcome, str):
            refused[name] = refused[numbered] = outcome
            continue
        if last:
            aliases[numbered] = name
        layers.append(_layer(name, call, outcome, image, orders(call, outcome)))
    for path in modules:
        if path and path not in counts:
            refused[path] = "it does not run in a forward pass"
    for alias, path in _second_names(module).items():
        if path in counts:
            aliases[alias] = path
            aliases.update({f"{alias}#{k}": f"{path}#{k}" for k in range(counts[path] - 1)})
    catalogue = LayerCatalogue(layers, aliases=aliases, refused=refused)
    return catalogue, HookPoints(module, catalogue, calls, hidden)


def _layer(
    name: str,
    call: Call,
    reading: Reading,
    image: tuple[int, int],
    token_order: tuple[int, ...] | None,
) -> Layer:
    assert call.output is not None
    grid = reading.grid
    return Layer(
        name=name,
        module_type=type(call.module).__name__,
        shape=tuple(call.output.shape[1:]),
        layout=reading.layout,
        channels=reading.channels,
        grid=grid,
        prefix_tokens=reading.prefix_tokens,
        stride=None if grid is None else (image[0] / grid[0], image[1] / grid[1]),
        order=call.order,
        overwritten=call.overwritten,
        token_order=token_order,
    )


def _second_names(module: nn.Module) -> dict[str, str]:
    """Map the further names of modules registered more than once to their first name."""
    first: dict[nn.Module, str] = {}
    second: dict[str, str] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        if first.setdefault(part, path) != path:
            second[path] = first[part]
    return second
