"""Puts a module into eval mode with frozen parameters for one forward, and restores it.

A module in train mode must not update its batch-norm statistics, and a parameter that requires grad
costs memory and time in every backward pass. `Module.eval()` is not used, because some timm modules
override it with side effects.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class FrozenEval:
    """Lists a module's parts once, so that no forward has to walk the module tree.

    After submodules are replaced, a new `FrozenEval` is needed.
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
        """Keep the module in eval mode and its parameters frozen inside the context."""
        training = [part for part in self._modules if part.training]
        trainable = [weight for weight in self._parameters if weight.requires_grad]
        caches = [
            (part, name, dict(vars(part)[name])) for part, name in self._caches if part.training
        ]
        buffers = [(current, dict(current)) for current in self._buffers]
        try:
            for part in training:
                part.training = False
            for weight in trainable:
                weight.requires_grad_(False)
            yield
        finally:
            for current, before in buffers:  # ConViT replaces a buffer for each input size
                if any(current.get(name) is not buffer for name, buffer in before.items()):
                    current.clear()
                    current.update(before)
            for weight in trainable:
                weight.requires_grad_(True)
            for part in training:
                part.training = True
            # LeViT and TinyViT cache attention biases, in eval mode only. In a model that is being
            # trained, the next optimiser step would make such a cache stale.
            for part, name, entries in caches:
                setattr(part, name, entries)
