"""`Layer` and `LayerCatalogue` describe the layers of a model.

A layer is a tensor with the batch first that a hook point returns. Four layouts cover timm:
``NCHW``, ``NHWC``, ``tokens`` (B, T, C) and ``vector`` (B, C). `Layer.spatial` and `Layer.pooled`
hide the layout, so that one implementation of a technique serves all of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from timmscope_registry.errors import LayerNotFound, UnsupportedModel
from timmscope_registry.html_table import html_table

Layout = Literal["NCHW", "NHWC", "tokens", "vector"]
"""Order of a layer's axes: channels first, channels last, tokens by channels, or channels only."""

LOGITS = "logits"
"""Name of the hook point at the root module's output."""


@lru_cache(maxsize=64)
def _index_tensor(order: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(order, device=device)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One call of one module, and the layout of its output.

    Attributes:
        name: name of the hook point: ``blocks.4``, or ``stage.act#0`` for a call before the
            module's last; ``stage4[1]`` is one of several tensors that a module returns.
        module_type: class name of the module.
        shape: shape of the output without the batch.
        layout: order of the axes, one of `Layout`.
        channels: number of units.
        grid: (height, width) in cells; None for vectors and for tokens without a position.
        prefix_tokens: number of tokens before those of the grid (class, distillation and register
            tokens).
        stride: (vertical, horizontal) size of a cell in input pixels; None without a grid.
        order: index in the order in which the module calls of a forward finish.
        overwritten: whether the model later changes this tensor in place.
        token_order: the token at each cell, in row-major order of cells; None if tokens are
            already in that order.
    """

    name: str
    module_type: str
    shape: tuple[int, ...]
    layout: Layout
    channels: int
    grid: tuple[int, int] | None
    prefix_tokens: int
    stride: tuple[float, float] | None
    order: int
    overwritten: bool = False
    token_order: tuple[int, ...] | None = field(default=None, repr=False)

    def spatial(self, t: Tensor) -> Tensor:
        """Convert an output of this layer to (B, C, h, w), cells in image order.

        A vector becomes (B, C, 1, 1). Prefix tokens are left out. Convolutional layouts may have
        another size than in the catalogue; tokens may not, because their positions would be
        unknown.

        Raises:
            UnsupportedModel: the layer has no grid, or `t` does not fit it.
        """
        self._check(t)
        if self.layout == "NCHW":
            return t
        if self.layout == "NHWC":
            return t.permute(0, 3, 1, 2)
        if self.layout == "vector":
            return t[:, :, None, None]
        if self.grid is None:
            raise UnsupportedModel(
                f"layer {self.name} has {self.shape[0]} token(s) without a position in the image, "
                "so it has no map; choose a layer with a grid"
            )
        height, width = self.grid
        cells = t[:, self.prefix_tokens :]
        if cells.shape[1] != height * width:
            raise UnsupportedModel(
                f"layer {self.name} was catalogued with {self.prefix_tokens} prefix tokens and a "
                f"{height}x{width} grid, but this output has {t.shape[1]} tokens; "
                "use images of the model's input size"
            )
        if self.token_order is not None:
            cells = cells[:, _index_tensor(self.token_order, t.device)]
        return cells.transpose(1, 2).reshape(len(t), self.channels, height, width)

    def pooled(self, t: Tensor) -> Tensor:
        """Average an output of this layer over the grid, without prefix tokens, to (B, C).

        Tokens without a grid (only a class token) are averaged; a vector is returned unchanged.

        Raises:
            UnsupportedModel: `t` does not fit the layer.
        """
        self._check(t)
        if self.layout == "NCHW":
            return t.mean((2, 3))
        if self.layout == "NHWC":
            return t.mean((1, 2))
        if self.layout == "tokens":
            return (t if self.grid is None else t[:, self.prefix_tokens :]).mean(1)
        return t

    def _check(self, t: Tensor) -> None:
        dimension = 1 if self.layout in ("NCHW", "vector") else -1
        if t.ndim != len(self.shape) + 1 or t.shape[dimension] != self.channels:
            raise UnsupportedModel(
                f"expected an output of layer {self.name}, {self.layout} "
                f"{('B', *self.shape)}, but got a tensor of shape {tuple(t.shape)}"
            )


class LayerCatalogue(Mapping[str, Layer]):
    """A model's layers in execution order; prints as a table.

    Args:
        layers: the layers, each once.
        aliases: further names of layers (the numbered name of a module's last call, second names
            of a module registered twice), with the name in the catalogue.
        refused: modules that are not layers, by name, with the reason.
    """

    def __init__(
        self,
        layers: Iterable[Layer],
        *,
        aliases: Mapping[str, str] | None = None,
        refused: Mapping[str, str] | None = None,
    ) -> None:
        self._layers = {layer.name: layer for layer in layers}
        self._aliases = dict(aliases or {})
        self._refused = dict(refused or {})

    def __getitem__(self, name: str) -> Layer:
        """Return the layer of that name or alias; raises `LayerNotFound` if there is none."""
        return self.resolve(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def get(self, name: str, default: Layer | None = None) -> Layer | None:  # type: ignore[override]
        """Return the layer of that name or alias, or `default`."""
        return self.resolve(name) if name in self else default

    def __contains__(self, name: object) -> bool:
        return name in self._layers or name in self._aliases

    def resolve(self, name: str) -> Layer:
        """Return the layer of that name or alias.

        Raises:
            LayerNotFound: there is none; the message has the nearest names and, if the module
                exists, the reason why it is not a layer.
        """
        layer = self._layers.get(name) or self._layers.get(self._aliases.get(name, ""))
        if layer is not None:
            return layer
        nearest = self.nearest(name)
        several = len(self) > 1
        hint = f"; nearest: {', '.join(nearest)}" if nearest and several else self._range()
        reason = self._refused.get(name)
        fault = f"{name} is not a layer: {reason}" if reason else f"no layer is called {name!r}"
        raise LayerNotFound(fault + hint, name=name, nearest=nearest)

    def _range(self) -> str:
        names = list(self)
        if not names:
            return ""
        if len(names) == 1:
            return f"; the model's only layer is {names[0]}"
        return f"; there are {len(names)}, from {names[0]} to {names[-1]}: see `timmscope layers`"

    def nearest(self, name: str, count: int = 5) -> tuple[str, ...]:
        """Return up to `count` similar names.

        Layers inside the module `name`, or else below its nearest parent, come first, then layers
        of similar spelling.
        """
        related = [layer for layer in self if name and layer.startswith((f"{name}.", f"{name}["))]
        parent = name.rpartition(".")[0]
        while parent and not related:
            below = [layer for layer in self if f"{layer}.".startswith(f"{parent}.")]
            related = difflib.get_close_matches(name, below, count, cutoff=0.0)
            parent = parent.rpartition(".")[0]
        similar = difflib.get_close_matches(name, self, count, cutoff=0.4)
        return tuple(dict.fromkeys([*related[-count:], *similar]))[:count]

    def table(self, names: Iterable[str] | None = None) -> str:
        """Format the layers, or those named, as a table in plain text with one line per layer.

        Raises:
            LayerNotFound: one of `names` is not a layer.
        """
        rows = [("layer", "type", "layout", "shape", "grid", "prefix", "channels", "stride px")]
        for layer in self.values() if names is None else map(self.resolve, names):
            grid = f"{layer.grid[0]}x{layer.grid[1]}" if layer.grid else "-"
            stride = f"{layer.stride[0]:g}x{layer.stride[1]:g}" if layer.stride else "-"
            shape = "x".join(map(str, layer.shape))
            prefix = str(layer.prefix_tokens) if layer.layout == "tokens" else "-"
            numbers = (shape, grid, prefix, str(layer.channels), stride)
            rows.append((layer.name, layer.module_type, layer.layout, *numbers))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        names = list(self)
        ends = f", {names[0]} to {names[-1]}" if names else ""
        return f"<LayerCatalogue of {len(names)} layers{ends}; print it for a table>"

    def _repr_html_(self) -> str:
        rows = (
            {
                "layer": layer.name,
                "type": layer.module_type,
                "layout": layer.layout,
                "shape": "×".join(map(str, layer.shape)),
                "grid": "×".join(map(str, layer.grid or ())),
                "channels": layer.channels,
                "stride px": "×".join(f"{side:g}" for side in layer.stride or ()),
            }
            for layer in self.values()
        )
        return html_table(repr(self), rows, len(self))
