"""Refuses an architecture whose arguments ask for more memory than is free, before it is made.

It is made once on the meta device, where weights have shapes and no values. That takes about as
long as making it, so it is done only for numbers that are larger than usual.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from timmscope.free_memory import free_memory
from timmscope_registry import ModelError

MOST = 1_000_000
"""Largest number in an id, such as that of classes."""
_MOST_TENSORS = 10_000
"""Largest number of tensors of weights; HRNet-W64 has 1,600."""
_USUAL = {"img_size": 512, "num_classes": 100_000, "in_chans": 1_000}
_USUAL_NUMBER = 128
"""Numbers up to these never make a model that does not fit."""
_USUAL_VALUES = 3 << 20
"""Values of an image that always fits into memory."""
_LISTING_BYTES = 100
"""Fewest bytes per value of an image to list the layers: those of a ViT with patches of 32; a
ResNet-50 takes twelve times that."""
_MAKERS = {torch.empty, torch.full, torch.ones, torch.rand, torch.randn, torch.zeros}


class _TooLarge(BaseException):
    """Ends the making of an architecture; no `Exception`, so that no `except Exception` does."""


class _WithoutValues(TorchFunctionMode):
    """Makes new tensors on the meta device, and counts them."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self._most = self._left = most_bytes
        self._tensors = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func not in _MAKERS:
            return func(*args, **(kwargs or {}))
        tensor: Tensor = func(*args, **{**(kwargs or {}), "device": "meta"})
        self._tensors += 1
        self._left -= tensor.numel() * tensor.element_size()
        if self._left < 0:
            raise _TooLarge(
                f"more than {self._most / 2**30:.1f} GiB of weights, half of the free memory"
            )
        if self._tensors > _MOST_TENSORS:
            raise _TooLarge(f"more than {_MOST_TENSORS:,} tensors of weights")
        return tensor


def require_bounds(arguments: Mapping[str, Any], text: str) -> None:
    """Refuse numbers that no architecture has.

    Raises:
        ModelError: an argument is or holds a number above a million.
    """
    for key, value in arguments.items():
        if key != "seed" and any(abs(number) > MOST for number in _numbers(value)):
            shown = str(value) if len(str(value)) <= 40 else f"{str(value)[:40]}…"
            raise ModelError(
                f"{key} is {shown} in {text!r}: expected numbers of at most {MOST:,}, in digits"
            )


def require_memory(
    make: Callable[[Mapping[str, Any]], object], name: str, arguments: Mapping[str, Any]
) -> None:
    """Refuse arguments with which an architecture does not fit into the free memory.

    Args:
        make: makes the architecture from arguments.
        name: its name.
        arguments: arguments of an id.

    Raises:
        ModelError: the weights need more memory than is free, or there are too many.
    """
    unusual = {
        key: value
        for key, value in arguments.items()
        if any(abs(number) > _USUAL.get(key, _USUAL_NUMBER) for number in _numbers(value))
    }
    if not unusual:
        return
    try:
        # An architecture that takes no img_size is made without it. Other errors are reported when
        # it is made with values.
        for given in (arguments, {k: v for k, v in arguments.items() if k != "img_size"}):
            with suppress(Exception), _WithoutValues(free_memory() // 2):
                make(given)
                return
    except _TooLarge as error:
        shown = ", ".join(f"{key}={value}" for key, value in unusual.items())
        raise ModelError(f"{name!r} with {shown} has {error}: give smaller numbers") from None


def require_image_memory(size: Sequence[int], model: str) -> None:
    """Refuse an input size at which listing the layers needs more memory than is free.

    Args:
        size: channels, height and width.
        model: the model, as the message names it.

    Raises:
        ModelError: it is too large.
    """
    values = math.prod(size)
    if values <= _USUAL_VALUES:
        return
    needed, free = _LISTING_BYTES * values, free_memory()
    if needed > free:
        shown = "×".join(str(value) for value in size)
        raise ModelError(
            f"{model} with inputs of {shown} needs at least {needed / 2**30:.1f} GiB of memory, "
            f"and {free / 2**30:.1f} GiB are free: give a smaller img_size or input_size"
        )


def _numbers(value: object) -> Iterator[float]:
    """Yield the numbers in a value, also inside tuples, lists and dictionaries."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, Mapping):
        yield from _numbers(list(value.values()))
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _numbers(item)
