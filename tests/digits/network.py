"""A convolutional network for 8×8 digits, small enough to be trained in a test."""

from __future__ import annotations

import re

from torch import Tensor, nn

from timmscope import HookedModel, ModelError
from timmscope_registry.hooks import OwnGenerators


class DigitsCNN(nn.Sequential):
    """Three convolutions, the last two with stride 2, and two linear layers; 66,666 weights."""

    num_classes = 10

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(B, 10)` of digits `(B, 1, 8, 8)`."""
        logits: Tensor = super().forward(x)
        return logits


def load(rest: str) -> HookedModel:
    """Load `digits:cnn?seed=0`, the network with random weights that the seed determines.

    Raises:
        ModelError: there is no such network.
    """
    match = re.fullmatch(r"cnn(?:\?seed=(\d{1,9}))?", rest)
    if match is None:
        raise ModelError(f"digits: has no network {rest!r}; there is digits:cnn?seed=0")
    with OwnGenerators(int(match[1] or 0)):
        module = DigitsCNN()
    return HookedModel(
        module.eval(),
        mean=(0,),
        std=(1,),
        input_size=(1, 8, 8),
        interpolation="bilinear",
        crop_pct=1.0,
        class_names=[str(digit) for digit in range(10)],
        id=f"digits:{rest}",
    )
