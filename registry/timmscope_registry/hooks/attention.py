"""Turns timm's fused attention off for a while, so that attention matrices exist as tensors.

`timm.layers.set_fused_attn` affects only models created later, so this sets `fused_attn` of each
module.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def plain_attention(module: nn.Module) -> Iterator[tuple[str, ...]]:
    """Turn fused attention off in all parts of `module` inside the context.

    The context gives the names of the modules that were switched.
    """
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
