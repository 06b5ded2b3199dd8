"""A hook that counts the forwards of a module, whoever starts them.

A technique may run the caller's module through another wrapper, or call it itself. Only a hook on
the module sees each forward, and sees it once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from timmscope_registry.hooks.running import is_tracing


class ForwardCount:
    """Passes the input of each forward of a module to a function, in the thread that made it.

    Forwards that only list the layers are left out. A copy of the module counts nothing.

    Args:
        function: gets the input, as a tensor that no other forward has.
    """

    def __init__(self, function: Callable[[Tensor], None] | None) -> None:
        self._function = function
        self._thread = threading.get_ident()

    def __reduce__(self) -> tuple[type[ForwardCount], tuple[None]]:
        """Copy as a hook that does nothing."""
        return ForwardCount, (None,)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Count a forward; a forward pre-hook that gets keyword arguments."""
        function, mine = self._function, threading.get_ident() == self._thread
        if function is None or not mine or kwargs is None or is_tracing():
            return None
        values = [*args, *kwargs.values()]
        first = next((n for n, each in enumerate(values) if isinstance(each, Tensor)), None)
        if first is None:
            return None
        if values[first].requires_grad and torch.is_grad_enabled():
            values[first] = values[first].view_as(values[first])  # the caller may use it again
        function(values[first])
        named = zip(kwargs, values[len(args) :], strict=True)
        return tuple(values[: len(args)]), dict(named)
