"""Says at which steps of an optimisation to keep a frame for an animation."""

from __future__ import annotations

import torch


def frame_steps(steps: int, frames: int) -> set[int]:
    """Return the steps, of 0 to `steps - 1`, whose images to keep: first, last, and between them.

    They are at equal distances, and fewer than `frames` if there are fewer steps.
    """
    return set(torch.linspace(0, steps - 1, frames).round().int().tolist())
