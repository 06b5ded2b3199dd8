"""Images that continue beyond their edges, for filters."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from timmscope import UnsupportedModel


def mirrored(images: Tensor, margin: int, what: str) -> Tensor:
    """Return images `(B, C, H, W)` with their mirror beyond each edge; edges are not repeated.

    Args:
        images: `(B, C, H, W)`.
        margin: number of pixels on each side.
        what: name of the filter, for the message.

    Raises:
        UnsupportedModel: the margin is not smaller than the images.
    """
    height, width = images.shape[2:]
    if margin >= min(height, width):
        raise UnsupportedModel(
            f"{what} reaches {margin} pixels to each side, and the images are {height}×{width}: "
            "take a smaller filter"
        )
    return functional.pad(images, (margin,) * 4, mode="reflect")
