"""A defence that a trembling hand could make."""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from timmscope import DefenceTechnique


class Shake(DefenceTechnique):
    """Moves each image by a few random pixels; what leaves on one side enters on the other."""

    random = True

    reach_px: int = Field(default=4, ge=0)
    """The largest move in each direction."""

    def transform(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Images `(B, C, H, W)` in [0, 1], each moved by numbers of its own generator."""
        reach = self.reach_px
        moves = [
            torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
            for generator in generators
        ]
        return torch.stack(
            [image.roll(move, (1, 2)) for image, move in zip(images, moves, strict=True)]
        )
