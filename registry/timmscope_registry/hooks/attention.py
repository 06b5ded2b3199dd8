"""Attention that shows its matrix: timm's fused kernels switched off for a while.

`timm.layers.set_fused_attn` acts on models made later; each module has its own `fused_attn`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def plain_attention(module: nn.Module) -> Iterator[tuple[str, ...]]:
    """Switch every `fused_attn` below `module` off inside the block; gives the modules' names."""
    fused = [
        (path, part)
        for path, part in module.named_modules()
        if vars(part).get("fused_attn") is True
    ]
    try:
        for _, part in fused:
            part.fused_attn = False
        yield tuple(path for path, _ in fused)
    finally:
        for _, part in fused:
            part.fused_attn = True
