"""Lets random operations of one thread draw from own generators instead of the process's.

Seeding torch's global generators and restoring them afterwards would be wrong with threads: what
another thread draws in between would be drawn again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class OwnGenerators(TorchDispatchMode):
    """Inside the context, torch's random operations draw from generators seeded with `seed`.

    They give the same numbers as after ``torch.manual_seed(seed)``, one generator per device, and
    the global generators stay untouched. Operations with a generator of their own keep it. Only
    attention kernels with dropout on a GPU, which take no generator, still draw from torch's.

    Args:
        seed: a seed as for ``torch.manual_seed``.

    Attributes:
        drawn: whether an operation wanted to draw from a global generator.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drawn = False
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation, with an own generator if it is random."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if func._can_decompose():  # in inference mode, dropout is one operation
            with self:
                return func.decompose(*args, **kwargs)
        given = _arguments(func, args, kwargs)
        if given.get("generator") is not None or _draws_nothing(given):
            return func(*args, **kwargs)
        self.drawn = True
        if func is _aten.native_dropout.default:
            return _dropout(given["input"], given["p"], self._generator(given))
        if func in _FILLS:
            return self._fill_like(func, given)
        seeded = _SEEDED.get(func, func)
        if any(argument.name == "generator" for argument in seeded._schema.arguments):
            kwargs = {**kwargs, "generator": self._generator(given)}
        return seeded(*args, **kwargs)

    def _generator(self, given: Mapping[str, Any]) -> torch.Generator:
        """The generator of the device on which an operation with these arguments draws."""
        tensors = [value.device for value in given.values() if isinstance(value, Tensor)]
        device = torch.device(given.get("device") or (tensors[0] if tensors else "cpu"))
        if device == torch.device("cuda"):  # without an index
            device = torch.device("cuda", torch.cuda.current_device())
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]

    def _fill_like(self, func: Any, given: Mapping[str, Any]) -> Tensor:
        options = {name: given[name] for name in _OPTIONS if given[name] is not None}
        empty = torch.empty_like(given["self"], **options)
        bounds = (given.get("low", 0), given["high"]) if "high" in given else ()
        filled: Tensor = getattr(empty, _FILLS[func])(*bounds, generator=self._generator(given))
        return filled


_aten = torch.ops.aten
_SEEDED = {
    _aten.rand.default: _aten.rand.generator,
    _aten.randn.default: _aten.randn.generator,
    _aten.randint.default: _aten.randint.generator,
    _aten.randint.low: _aten.randint.low_generator,
    _aten.randperm.default: _aten.randperm.generator,
}
"""The same operations with a generator as an argument."""
_FILLS = {
    _aten.rand_like.default: "uniform_",
    _aten.randn_like.default: "normal_",
    _aten.randint_like.default: "random_",
    _aten.randint_like.low_dtype: "random_",
}
"""By operation, the method that fills a new tensor in the same way."""
_OPTIONS = ("dtype", "layout", "device", "pin_memory", "memory_format")


def _arguments(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name, with defaults."""
    arguments = func._schema.arguments
    defaults = {each.name: each.default_value for each in arguments}
    positional = dict(zip((each.name for each in arguments), args, strict=False))
    return {**defaults, **positional, **kwargs}


def _draws_nothing(given: Mapping[str, Any]) -> bool:
    """Whether the arguments turn the random part of an operation off."""
    chances = [given[name] for name in ("dropout", "dropout_p") if name in given]
    modes = [given[name] for name in ("train", "training") if name in given]
    return False in modes or any(isinstance(chance, float) and not chance for chance in chances)


def _dropout(values: Tensor, p: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What `native_dropout` computes: the values that stay, scaled, and which ones stay."""
    mask = torch.empty_like(values).bernoulli_(1 - p, generator=generator)
    return values * mask * (1 / (1 - p) if p < 1 else 0.0), mask.bool()
