"""A universal attack that a pair of tinted glasses could make."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from timmscope import Goal, HookedModel, ImageBatches, UniversalAttack


class Tint(UniversalAttack):
    """Adds one colour to every pixel: of all extreme colours, the one that fools most images."""

    norm: Literal["linf"] = "linf"
    """The norm of the change: its largest value."""
    batch: int = Field(default=8, ge=1)
    """Images per forward pass."""

    def fit(self, model: HookedModel, batches: ImageBatches, goal: Goal) -> Tensor:
        """One colour `(C, 1, 1)`, repeated over the image."""
        channels, height, width = batches.shape
        signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * channels).view(-1, channels)
        tints = signs.to(model.device)[:, :, None, None] * self.ball(signs[None]).epsilon
        fooled = torch.zeros(len(tints))
        for images, rows in batches.epoch(0, self.batch):
            own = goal.rows(rows)
            for number, tint in enumerate(tints):
                with torch.no_grad():
                    outputs = own.outputs(model, (images + tint).clamp(0, 1))
                fooled[number] += int(own.reached(outputs).sum())
        return tints[int(fooled.argmax())].expand(channels, height, width)
