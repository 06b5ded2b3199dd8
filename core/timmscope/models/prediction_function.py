"""`PredictionFunction` is a module that calls a function from images to predictions.

The function may be a service, a model of another framework, or a model behind a defence. Nothing
inside it is seen, so the module has no weights, no gradients, and no layer but its output. What it
returns is checked at every call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from timmscope_registry import ModelError, UnsupportedModel
from timmscope_registry.plugin_faults import brief

Outputs = Literal["logits", "probabilities", "labels"]
"""What a prediction function returns: `(B, K)` logits or probabilities, or `(B,)` class indices."""
Arrays = Literal["torch", "numpy"]
"""What a prediction function takes: tensors or arrays, both `(B, C, H, W)` float32 on the CPU."""

MAX_IMAGES = 64
"""Largest number of images per call of the function, because its memory is unknown."""
SUM_TOLERANCE = 1e-3
"""Largest accepted distance of a sum of probabilities from 1; float16 stays below it."""
_IF_LOGITS = "; if these are logits, say outputs='logits'"
_LEAST = torch.finfo(torch.float32).tiny
"""Probability that stands for zero, so that its logarithm is finite."""


class PredictionFunction(nn.Module):
    """Calls a function and returns logits `(B, K)`.

    The logits of a function that returns probabilities are their logarithms, so that their softmax
    gives the probabilities again. A label is a probability of 1.

    Args:
        function: takes `(B, C, H, W)` float32, and returns what `outputs` says.
        outputs: what the function returns.
        num_classes: number of classes K.
        arrays: what the function takes.
        id: name of the function in error messages.

    Raises:
        ModelError: an argument has a wrong form.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        *,
        outputs: Outputs,
        num_classes: int,
        arrays: Arrays,
        id: str,
    ) -> None:
        super().__init__()
        if not callable(function):
            raise ModelError(f"{brief(function)} cannot be called: expected a prediction function")
        if not isinstance(id, str) or not id:
            raise ModelError(
                f"id is {id!r}: expected a name for the function, as in 'service:v2', because "
                "nothing else tells it from another one"
            )
        for name, value, known in (
            ("outputs", outputs, get_args(Outputs)),
            ("arrays", arrays, get_args(Arrays)),
        ):
            if value not in known:
                raise ModelError(f"{name} is {value!r}: expected one of {', '.join(known)}")
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ModelError(f"num_classes is {num_classes!r}: expected a whole number, 1 or more")
        self._function = (function,)  # in a tuple, so that a module is not registered as a part
        self.outputs: Outputs = outputs
        self.num_classes = num_classes
        self.arrays: Arrays = arrays
        self.id = id
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, K)` float32, without a gradient.

        Raises:
            UnsupportedModel: the images require a gradient.
            ModelError: the function did not return what `outputs` says.
        """
        if images.requires_grad and torch.is_grad_enabled():
            raise UnsupportedModel(
                f"{self.id} is a prediction function and has no gradient: use a technique that "
                "needs none, such as occlusion, rise, randomized-smoothing or a black-box attack"
            )
        with torch.no_grad():
            return torch.cat([self._logits(part) for part in images.detach().split(MAX_IMAGES)])

    def _logits(self, images: Tensor) -> Tensor:
        given = images.clone()  # the function may change it
        returned = self._function[0](given.cpu().numpy() if self.arrays == "numpy" else given)
        values = self._checked(returned, len(images))
        if self.outputs == "logits":
            return values.float().to(images.device)
        if self.outputs == "labels":
            values = nn.functional.one_hot(values.long(), self.num_classes)
        return values.float().clamp_min(_LEAST).log().to(images.device)

    def _checked(self, returned: object, count: int) -> Tensor:
        """Return what the function returned as a tensor.

        Raises:
            ModelError: it is something else than `outputs` says.
        """
        values = _as_tensor(returned)
        shape = (count,) if self.outputs == "labels" else (count, self.num_classes)
        if values is None or tuple(values.shape) != shape:
            got = brief(returned) if values is None else f"shape {tuple(values.shape)}"
            raise self._error(f"returned {got}", f"{self.outputs} of shape {shape}")
        if not bool(torch.isfinite(values.float()).all()):
            raise self._error(f"returned NaN or infinite {self.outputs}", "finite numbers")
        if self.outputs == "labels":
            wrong = (values != values.round()) | (values < 0) | (values >= self.num_classes)
            if bool(wrong.any()):
                expected = f"whole numbers from 0 to {self.num_classes - 1}"
                raise self._error(f"returned the label {values[wrong][0].item():g}", expected)
        if self.outputs == "probabilities":
            low, high = (float(value) for value in torch.aminmax(values))
            if low < -SUM_TOLERANCE or high > 1 + SUM_TOLERANCE:
                did = f"returned values from {low:.3g} to {high:.3g}"
                raise self._error(did, f"[0, 1]{_IF_LOGITS}")
            sums = values.sum(1)
            worst = float(sums[(sums - 1).abs().argmax()])
            if abs(worst - 1) > SUM_TOLERANCE:
                did = f"returned probabilities with the sum {worst:.6g}"
                raise self._error(did, f"1{_IF_LOGITS}")
        return values

    def _error(self, did: str, expected: str) -> ModelError:
        return ModelError(f"the prediction function {self.id} {did}; expected {expected}")


def _as_tensor(returned: object) -> Tensor | None:
    """Return a tensor, array or list of real numbers as float64; None if it is something else."""
    if isinstance(returned, Tensor):
        return None if returned.is_complex() else returned.detach().cpu().double()
    try:
        array = np.asarray(returned)
    except (TypeError, ValueError):  # rows of different lengths
        return None
    return torch.from_numpy(array.astype(np.float64)) if array.dtype.kind in "biuf" else None
