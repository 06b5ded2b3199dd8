"""What a layer is, and the catalogue of a model's layers.

A layer is a hook point that returns one tensor with the batch first. Four layouts cover timm:
``NCHW``, ``NHWC``, ``tokens`` (B, T, C) and ``vector`` (B, C). `Layer.spatial` and `Layer.pooled`
hide them, so that a technique is written once.
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

Layout = Literal["NCHW", "NHWC", "tokens", "vector"]
"""The order of a layer's axes: units first or last, one row a token, or no grid at all."""

LOGITS = "logits"
"""The hook point that stands for the root module's output."""


@lru_cache(maxsize=64)
def _index(order: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(order, device=device)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One call of one module, and how to read what it returns.

    Attributes:
        name: hook point, ``blocks.4`` or ``stage.act#0`` for a call before the last.
        module_type: class name of the module.
        shape: shape of the output without the batch.
        layout: where channels and positions are.
        channels: number of units.
        grid: (height, width) in cells; None for vectors and for tokens without a place.
        prefix_tokens: tokens before those of the grid (class, distillation, register tokens).
        stride: (vertical, horizontal) size of a cell in input pixels.
        order: place in the order in which calls finish.
        overwritten: whether the model later changes this very tensor in place.
        token_order: where tokens are not in row-major order, the token at each cell.
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
        """Bring an output of this layer to (B, C, h, w), cells in image order.

        A vector becomes (B, C, 1, 1). Prefix tokens are left out. Convolutional layouts may have
        another size than the catalogue's; tokens may not, since nothing says where they belong.

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
                f"layer {self.name} has {self.shape[0]} token(s) without a place in the image, "
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
            cells = cells[:, _index(self.token_order, t.device)]
        return cells.transpose(1, 2).reshape(len(t), self.channels, height, width)

    def pooled(self, t: Tensor) -> Tensor:
        """Bring an output of this layer to (B, C): the mean over the grid, without prefix tokens.

        Tokens without a grid (a class token alone) are averaged; a vector stays as it is.
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
                f"{('B', *self.shape)}, and got a tensor of shape {tuple(t.shape)}"
            )


class LayerCatalogue(Mapping[str, Layer]):
    """A model's layers in execution order; prints as a table.

    Iteration gives each call once. `aliases` maps further names to catalogued ones (the numbered
    name of a last call, a module registered twice); `refused` says why other modules are no layers.
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
        """Return the layer of that name; an unknown one raises `LayerNotFound`."""
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
            LayerNotFound: with the reason, where the module exists but is no layer, and the
                nearest names.
        """
        found = self._layers.get(name) or self._layers.get(self._aliases.get(name, ""))
        if found is not None:
            return found
        nearest = self.nearest(name)
        hint = f"; nearest: {', '.join(nearest)}" if nearest else self._range()
        reason = self._refused.get(name)
        what = f"{name} is not a layer: {reason}" if reason else f"no layer is called {name!r}"
        raise LayerNotFound(what + hint, name=name, nearest=nearest)

    def _range(self) -> str:
        names = list(self)
        if not names:
            return ""
        return f"; there are {len(names)}, from {names[0]} to {names[-1]}: see `timmscope layers`"

    def nearest(self, name: str, count: int = 5) -> tuple[str, ...]:
        """Names that resemble `name`: its own parts and parents first, then by spelling."""
        parts = [known for known in self if name and known.startswith(f"{name}.")]
        parent = name.rpartition(".")[0]
        while parent and not parts:
            parts = [known for known in self if known == parent or known.startswith(f"{parent}.")]
            parts = difflib.get_close_matches(name, parts, count, cutoff=0.0)
            parent = parent.rpartition(".")[0]
        close = difflib.get_close_matches(name, self, count, cutoff=0.4)
        return tuple(dict.fromkeys([*parts[-count:], *close]))[:count]

    def table(self, names: Iterable[str] | None = None) -> str:
        """Lay out the layers (or those named) as aligned plain text, one per line."""
        rows = [("layer", "type", "layout", "shape", "grid", "prefix", "channels", "stride px")]
        for layer in self.values() if names is None else map(self.resolve, names):
            grid = f"{layer.grid[0]}x{layer.grid[1]}" if layer.grid else "-"
            stride = f"{layer.stride[0]:g}x{layer.stride[1]:g}" if layer.stride else "-"
            shape = "x".join(map(str, layer.shape))
            prefix = str(layer.prefix_tokens) if layer.layout == "tokens" else "-"
            rows.append(
                (
                    layer.name,
                    layer.module_type,
                    layer.layout,
                    shape,
                    grid,
                    prefix,
                    str(layer.channels),
                    stride,
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"<LayerCatalogue of {len(self)} layers>\n{self.table()}"
