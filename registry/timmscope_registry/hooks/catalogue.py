"""Builds the layer catalogue from one traced forward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor, nn

from timmscope_registry.hooks.layers import LOGITS, Layer, LayerCatalogue
from timmscope_registry.hooks.layout import LayoutReader, Reading
from timmscope_registry.hooks.order import token_orders
from timmscope_registry.hooks.parts import described
from timmscope_registry.hooks.points import HookPoints, root_name
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
        # Hidden modules are read too, because later calls are read from them.
        outcomes: dict[str, tuple[Call, Reading | str]] = {"": (call, reader.read(call))}
        outcomes |= {place: (part, reader.read_part(part)) for place, part in call.parts.items()}
        path = call.path or root_name(modules, several=bool(call.parts))
        last = call.number == counts[call.path] - 1
        numbered = f"{path}#{call.number}"
        name = path if last else numbered
        if call.parts:
            several = f"it returns {described(call.returned, name, call.parts)}"
            outcomes[""] = (call, several)
            if not call.path:
                refused[LOGITS] = several
        for place, (part, reading) in outcomes.items():
            outcome = hidden.get(call.path, reading)
            if isinstance(outcome, str):
                refused[name + place] = refused[numbered + place] = outcome
                continue
            if last:
                aliases[numbered + place] = name + place
            if not call.path and path != LOGITS:
                aliases[LOGITS + place] = name + place
            layers.append(_layer(name + place, part, outcome, image, orders(part, outcome)))
    for path in modules:
        if path and path not in counts:
            refused[path] = "it does not run in a forward pass"
    for alias, path in _second_names(module).items():
        if path in counts:
            aliases[alias] = path
            aliases.update({f"{alias}#{k}": f"{path}#{k}" for k in range(counts[path] - 1)})
            tensors = [layer.name for layer in layers if layer.name.startswith(f"{path}[")]
            aliases.update({alias + name.removeprefix(path): name for name in tensors})
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
