"""A model that does not move while it is looked at: eval mode and frozen, for one forward.

A module handed over in train mode must not update its batch-norm statistics, and a parameter that
requires grad costs memory and time in every backward pass. Both are switched off for the forward
and put back afterwards, without `Module.eval()`: some timm modules override it with side effects.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class FrozenEval:
    """Holds a module's parts, so that the check before each forward walks no tree.

    The parts are listed once: after replacing submodules, make a new one.
    """

    def __init__(self, module: nn.Module) -> None:
        self._modules = list(module.modules())
        self._parameters = list(module.parameters())
        self._caches = [
            (part, name)
            for part in self._modules
            for name, value in vars(part).items()
            if name.endswith("cache") and isinstance(value, dict)
        ]
        self._buffers = [part._buffers for part in self._modules if part._buffers]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Keep the module in eval mode and its parameters frozen inside the block."""
        training = [part for part in self._modules if part.training]
        learning = [weight for weight in self._parameters if weight.requires_grad]
        caches = [
            (part, name, dict(vars(part)[name])) for part, name in self._caches if part.training
        ]
        buffers = [(held, dict(held)) for held in self._buffers]
        try:
            for part in training:
                part.training = False
            for weight in learning:
                weight.requires_grad_(False)
            yield
        finally:
            for held, before in buffers:  # ConViT fits a buffer to the size of its input
                if any(held.get(name) is not buffer for name, buffer in before.items()):
                    held.clear()
                    held.update(before)
            for weight in learning:
                weight.requires_grad_(True)
            for part in training:
                part.training = True
            # LeViT and TinyViT cache attention biases in eval mode only. In a model that is being
            # trained such a cache would go stale at the next optimiser step.
            for part, name, entries in caches:
                setattr(part, name, entries)
