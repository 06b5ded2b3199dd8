"""Smooth activations: a network whose ReLUs are replaced by softplus while it runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from timmscope import DefenceTechnique


class SmoothActivations(DefenceTechnique):
    """Smooth activations replace each ReLU of the network by softplus, which has a slope anywhere.

    `softplus(x) = log(1 + exp(β·x)) / β`, which is above ReLU by at most log 2 / β, at x = 0. The
    bounded ReLU6 becomes `softplus(x) − softplus(x − 6)`, and a leaky ReLU of slope s
    `s·x + (1 − s)·softplus(x)`. Images stay as they are, and so does the module: functions of
    PyTorch are replaced only while it runs. ReLUs are found as modules, functions, methods and
    clamps at 0, but not in compiled functions.

    A ReLU that is off passes no gradient. With softplus, attacks and explanations get one, and the
    gradient changes smoothly with the image: a defence against explanations that flicker, and a
    test of whether attacks fail for want of a gradient. A small β changes the predictions. Cost:
    one softplus per ReLU, two per ReLU6.

    Paper:
        - Dombrowski, Alber, Anders, Ackermann, Müller & Kessel, "Explanations can be manipulated
          and geometry is to blame", NeurIPS 2019, arXiv:1906.07983.
        - Xie, Tan, Gong, Yuille & Le, "Smooth Adversarial Training", 2020, arXiv:2006.14536.

    Raises:
        ImageError: the images are not in [0, 1].
        ObjectiveError: the model has no class of a label's name or index, or has no classes.
        ParameterError: a parameter or `batch_size` is out of range.
        TechniqueError: the images are changed in shape or leave [0, 1].
    """

    beta: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Sharpness β; the larger, the nearer to ReLU."""

    def transform(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Leave the images as they are."""
        return images

    def around_network(self) -> AbstractContextManager[None]:
        """Replace ReLUs inside the context."""
        return _Smoothing(self.beta, self.text())


class _Smoothing(TorchFunctionMode):
    """Replaces ReLUs of this thread by softplus; warns if it meets none."""

    def __init__(self, beta: float, name: str) -> None:
        super().__init__()
        self._beta, self._name, self._met = beta, name, False

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if kind is None and not self._met:
            warnings.warn(
                f"{self._name} met no ReLU, so it changes nothing: use it for networks with ReLU",
                stacklevel=2,
            )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        reads = _READS.get(func)
        found = None if reads is None else reads(*args, **named)
        if found is None:
            return func(*args, **named)
        self._met = True
        top, slope = found
        x = args[0] if args else named["input"]
        if not named.get("inplace", _takes_place(func, args)):
            return self._smooth(x, top, slope)
        return x.copy_(self._smooth(x.clone(), top, slope))

    def _smooth(self, x: Tensor, top: float | None, slope: float) -> Tensor:
        smooth = functional.softplus(x, beta=self._beta)
        if top is not None:
            smooth = smooth - functional.softplus(x - top, beta=self._beta)
        return smooth if slope == 0 else slope * x + (1 - slope) * smooth


Kind = tuple[float | None, float] | None
"""Upper bound of a ReLU (None without one) and its slope below 0; None for what is no ReLU."""


def _relu(input: Tensor, inplace: bool = False) -> Kind:
    return None, 0.0


def _relu6(input: Tensor, inplace: bool = False) -> Kind:
    return 6.0, 0.0


def _leaky(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Kind:
    return None, negative_slope


def _hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Kind:
    return (max_val, 0.0) if min_val == 0 else None


def _clamp(input: Tensor, min: Any = None, max: Any = None) -> Kind:
    bounded = max is None or (isinstance(max, int | float) and max == 6)
    return (max, 0.0) if isinstance(min, int | float) and min == 0 and bounded else None


_INPLACE = {"relu": 1, "relu6": 1, "leaky_relu": 2, "hardtanh": 3}
"""Position of the argument `inplace` of functions that have one."""


def _takes_place(func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Whether a function overwrites its input."""
    name = func.__name__
    place = _INPLACE.get(name, len(args))
    return name.endswith("_") or (len(args) > place and bool(args[place]))


_READS: dict[Any, Callable[..., Kind]] = {
    getattr(place, name): reads
    for reads, names in (
        (_relu, "relu relu_"),
        (_relu6, "relu6"),
        (_leaky, "leaky_relu leaky_relu_"),
        (_hardtanh, "hardtanh hardtanh_"),
        (_clamp, "clamp clamp_ clip clip_ clamp_min clamp_min_"),
    )
    for name in names.split()
    for place in (torch, Tensor, functional)
    if hasattr(place, name)
}
