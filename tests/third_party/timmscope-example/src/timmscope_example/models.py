"""Models whose every weight is known."""

import numpy as np
import torch
from torch import Tensor, nn

from timmscope import HookedModel, ModelError


class MainColour(nn.Module):
    """Logits are the mean red, green and blue of the image."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.channels = nn.Conv2d(3, 3, 1, bias=False)
        self.channels.weight = nn.Parameter(torch.eye(3)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """`(B, 3)`."""
        return self.channels(x).mean((2, 3))


def colour_shares(images: np.ndarray) -> np.ndarray:
    """Shares of red, green and blue, `(B, 3)`: what a service might answer."""
    means = images.mean((2, 3)).clip(0) + 1e-6
    return means / means.sum(1, keepdims=True)


def load(rest: str) -> HookedModel:
    """Load `colours:rgb`, or `colours:service`, of which nothing is known but what it answers.

    Args:
        rest: what follows the colon.

    Raises:
        ModelError: there is no such model.
    """
    if rest == "service":
        return HookedModel.of_function(
            colour_shares,
            outputs="probabilities",
            arrays="numpy",
            input_size=(3, 16, 16),
            class_names=("red", "green", "blue"),
            id="colours:service",
        )
    if rest != "rgb":
        raise ModelError(
            f"colours: has no model {rest!r}; there are colours:rgb and colours:service"
        )
    return HookedModel(
        MainColour(),
        mean=(0, 0, 0),
        std=(1, 1, 1),
        input_size=(3, 16, 16),
        class_names=("red", "green", "blue"),
        id="colours:rgb",
    )
