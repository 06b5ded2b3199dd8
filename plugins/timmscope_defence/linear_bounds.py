"""CROWN: linear bounds of a network, by the library auto_LiRPA where it is installed."""

from __future__ import annotations

import importlib
from typing import Any, Literal

import torch
from torch import Tensor

from timmscope import HookedModel, ParameterError, UnsupportedModel

Method = Literal["crown-ibp", "crown"]
_NAMES = {"crown-ibp": "CROWN-IBP", "crown": "backward"}
_INSTALL = (
    "python -m pip install appdirs graphviz && python -m pip install --no-deps "
    "git+https://github.com/Verified-Intelligence/auto_LiRPA"
)


class LinearBounds:
    """Bounds the margins of a network over boxes by linear functions of the image.

    Args:
        model: the model; a copy of its module is bounded.
        images: `(B, C, H, W)`, of which only the shape matters.
        method: `crown`, with linear bounds of every layer, or `crown-ibp`, with intervals for those
            before the logits.

    Raises:
        ParameterError: auto_LiRPA is not installed, or does not run here.
        UnsupportedModel: it does not know a layer of the network.
    """

    def __init__(self, model: HookedModel, images: Tensor, method: Method) -> None:
        self._model, self._method = model, method
        self._library = _library()
        network = model.trainable_copy().eval().requires_grad_(False)
        example = model.preprocessing.normalise(torch.zeros_like(images[:1]).to(model.dtype))
        try:
            self._bounded = self._library.BoundedModule(network, example, device=model.device)
        except Exception as error:
            raise self._unsupported(error) from error

    def smallest_margin(self, images: Tensor, epsilon: float, labels: Tensor) -> Tensor:
        """Return a lower bound of `min over j ≠ y of z_y − z_j`, `(B,)`.

        Args:
            images: `(B, C, H, W)` in [0, 1]; every value may change by `epsilon`, within [0, 1].
            epsilon: largest change.
            labels: `(B,)` classes y.

        Raises:
            UnsupportedModel: auto_LiRPA has no bounds for a layer of the network.
        """
        normalise, dtype = self._model.preprocessing.normalise, self._model.dtype
        low, high = (
            normalise(end.clamp(0, 1).to(dtype)) for end in (images - epsilon, images + epsilon)
        )
        box = self._library.PerturbationLpNorm(norm=torch.inf, x_L=low, x_U=high)
        given = self._library.BoundedTensor(normalise(images.to(dtype)), box)
        rows = torch.arange(len(images), device=images.device)
        differences = -torch.eye(self._model.num_classes, dtype=dtype, device=images.device)
        differences = differences.repeat(len(images), 1, 1)  # row j: z_y − z_j
        differences[rows, :, labels] += 1
        try:
            lowest, _ = self._bounded.compute_bounds(
                x=(given,), C=differences, method=_NAMES[self._method], bound_upper=False
            )
        except Exception as error:
            raise self._unsupported(error) from error
        margins: Tensor = lowest.detach().scatter(1, labels[:, None], torch.inf).amin(1)
        return margins

    def _unsupported(self, error: Exception) -> UnsupportedModel:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return UnsupportedModel(
            f"auto_LiRPA has no bounds by {self._method} for {self._model.id}: {reason}"
        )


def _library() -> Any:
    """Import auto_LiRPA.

    Raises:
        ParameterError: it is not installed, or does not run here.
    """
    try:
        return importlib.import_module("auto_LiRPA")
    except Exception as error:  # an old version may fail in any way with the current PyTorch
        missing = isinstance(error, ImportError) and getattr(error, "name", "") == "auto_LiRPA"
        why = "is not installed" if missing else f"does not run here ({error})"
        raise ParameterError(
            f"CROWN needs auto_LiRPA, which {why}: {_INSTALL}", parameter="method"
        ) from error
