"""Puts a module into eval mode with frozen parameters for one forward, and restores it.

A module in train mode must not update its batch-norm statistics, and a parameter that requires grad
costs memory and time in every backward pass. `Module.eval()` is not used, because some timm modules
override it with side effects.

Gradient checkpointing is off as well: it would run parts of the module again in the backward pass,
after the forward and without its hooks. Compiled parts run uncompiled, because a compiled part
ignores hooks that are registered later.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_CHECKPOINT_FLAGS = (
    "grad_checkpointing",  # timm
    "gradient_checkpointing",  # transformers
    "memory_efficient",  # torchvision's DenseNet
    "use_checkpoint",  # Swin and UNet implementations
    "with_cp",  # OpenMMLab
)
"""Attributes by which modules turn gradient checkpointing on."""


class FrozenEval:
    """Lists a module's parts once, so that no forward has to walk the module tree.

    After submodules are replaced, a new `FrozenEval` is needed; `has_parts` says so.
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
        self._checkpointed = [
            (part, name)
            for part in self._modules
            for name in _CHECKPOINT_FLAGS
            if isinstance(getattr(part, name, None), bool)
        ]
        self._optimised = [part for part in self._modules if is_optimised(part)]
        self._children = [
            (part._modules, (*part._modules.values(),)) for part in self._modules if part._modules
        ]

    def has_parts(self) -> bool:
        """Whether no part was replaced, as by timm's `reset_classifier`; takes microseconds."""
        return all((*now.values(),) == before for now, before in self._children)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Keep the module in eval mode and its parameters frozen inside the context."""
        training = [part for part in self._modules if part.training]
        trainable = [weight for weight in self._parameters if weight.requires_grad]
        caches = [
            (part, name, dict(vars(part)[name])) for part, name in self._caches if part.training
        ]
        buffers = [(current, dict(current)) for current in self._buffers]
        checkpointed = [each for each in self._checkpointed if getattr(*each)]
        compiled = [  # by `part.compile()`
            (part, call)
            for part in self._modules
            if (call := vars(part).get("_compiled_call_impl")) is not None
        ]
        forwards = [(part, vars(part)["forward"]) for part in self._optimised]
        try:
            for part, name in checkpointed:
                setattr(part, name, False)
            for part, _ in compiled:
                vars(part)["_compiled_call_impl"] = None
            for part, _ in forwards:
                vars(part)["forward"] = vars(part)["_modules"]["_orig_mod"]
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
            for part, forward in forwards:
                vars(part)["forward"] = forward
            for part, call in compiled:
                vars(part)["_compiled_call_impl"] = call
            for part, name in checkpointed:
                setattr(part, name, True)


def is_optimised(module: nn.Module) -> bool:
    """Whether a module is what ``torch.compile(module)`` returns.

    torch._dynamo, which has the class, takes a second to import.
    """
    kind = type(module)
    return kind.__name__ == "OptimizedModule" and kind.__module__ == "torch._dynamo.eval_frame"
