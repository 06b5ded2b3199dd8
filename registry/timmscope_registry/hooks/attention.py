"""Turns timm's fused attention off during forwards, so that attention matrices exist as tensors.

`timm.layers.set_fused_attn` affects only models created later, so this sets `fused_attn` of each
module.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class PlainAttention:
    """Fused attention is off in all parts of a module during each forward inside the context.

    Args:
        module: the module.

    Attributes:
        names: the parts with fused attention.
    """

    def __init__(self, module: nn.Module) -> None:
        fused = {
            path: part
            for path, part in module.named_modules()
            if vars(part).get("fused_attn") is True
        }
        self.names = tuple(fused)
        self._parts = tuple(fused.values())

    def begin(self) -> None:
        """Do nothing: no state is kept between forwards."""

    @contextmanager
    def off(self) -> Iterator[None]:
        """Turn fused attention off for one forward."""
        switched = [part for part in self._parts if part.fused_attn is True]
        try:
            for part in switched:
                part.fused_attn = False
            yield
        finally:
            for part in switched:
                part.fused_attn = True
