"""What a synthesis returns to its base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SynthesisOutcome:
    """Return value of `synthesize`.

    Attributes:
        images: `(B, 3, H, W)` in [0, 1].
        scores: `(steps, B)` objective at each step, as the optimiser sees it.
        best_step: `(B,)` int64 step (from 0) whose update gave the returned image.
        targets: `(B,)` int64, the objective's target (from 0) that each image is for; needed if
            there are several targets, and not one image of each.
        facets: `(B,)` int64, the facet of its target (from 0) that each image shows; None if the
            technique knows no facets.
        frames: `(F, B, 3, H, W)` in [0, 1], the images at some steps, in order.
        importance: `(B, H, W)` of any scale, how much each pixel mattered to the optimisation: the
            pictures show the rest as transparent. None if the technique does not measure it.
    """

    images: Tensor
    scores: Tensor
    best_step: Tensor
    targets: Tensor | None = None
    facets: Tensor | None = None
    frames: Tensor | None = None
    importance: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[SynthesisOutcome], targets: Tensor) -> SynthesisOutcome:
        """Return one outcome of those of parts of the images, in their order.

        Args:
            parts: the outcomes, with the same number of steps and frames.
            targets: `(B,)` int64, the target of each image, as `per_image` returns them.
        """
        frames = [part.frames for part in parts if part.frames is not None]
        importance = [part.importance for part in parts if part.importance is not None]
        return cls(
            images=torch.cat([part.images for part in parts]),
            scores=torch.cat([part.scores for part in parts], dim=1),
            best_step=torch.cat([part.best_step for part in parts]),
            targets=targets,
            frames=torch.cat(frames, dim=1) if frames else None,
            importance=torch.cat(importance) if importance else None,
        )
