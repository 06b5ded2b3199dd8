"""Occlusion: the drop of the score when a patch of the image is covered."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    AttributionTechnique,
    Baseline,
    HookedModel,
    Objective,
    ParameterError,
    baseline_images,
    image_rows,
    perturbed_scores,
)

Window = tuple[int, int]
_SAME = 1e-5
"""Values this close in [0, 1] are the same colour: 8-bit images have steps of 0.004."""


class Occlusion(AttributionTechnique):
    """Occlusion measures how much the score drops when a patch of the image is covered.

    `S(I) − S(I with the patch covered)` for a patch that slides over the image; the value of a
    pixel is the mean drop over the patches that cover it, and is positive where the pixel is
    evidence for the objective. Patches at the right and lower edge are clipped. Cost: one forward
    pass per patch, in batches that fit in memory.

    Paper:
        Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014,
        arXiv:1311.2901.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: the objective does not fit the model.
        ParameterError: the patch is larger than the image, the stride is larger than the patch, or
            a parameter or `batch_size` is out of range.
        TechniqueError: the map is zero everywhere or not finite.
    """

    patch_px: int | None = Field(default=None, ge=1)
    """Side of the square patch in pixels; by default a seventh of the image's shorter side."""
    stride_px: int | None = Field(default=None, ge=1)
    """Pixels from one patch to the next, at most `patch_px`; by default half of `patch_px`."""
    baseline: Baseline = "grey"
    """What covers the patch: grey 0.5, the model's mean colour, zero (black), the image blurred,
    or uniform noise."""
    absolute: bool = False
    """Use the magnitude of each drop, so that evidence against the objective counts like evidence
    for it."""
    smooth: bool = False
    """Interpolate linearly between the centres of the patches, instead of averaging over the
    patches that cover a pixel."""

    def attribute(
        self, model: HookedModel, images: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor]:
        """Maps `(B, H, W)` and scores `(B,)`.

        Raises:
            ParameterError: the patch is larger than the image, or the stride than the patch.
        """
        height, width = images.shape[2:]
        patch, stride = self._sizes(height, width)
        rows, columns = _windows(height, patch, stride), _windows(width, patch, stride)
        covers = baseline_images(model, images, self.baseline, sigma_px=patch / 2)
        scored = []
        for index, (image, cover) in enumerate(zip(images, covers, strict=True)):
            with image_rows([index]):
                goal = objective.rows(index, index + 1)
                scored.append(self._scores(model, image, cover, goal, rows, columns))
        scores = torch.stack(scored)
        drops = scores[:, :1] - scores[:, 1:]
        if self.absolute:
            drops = drops.abs()
        spread = _between_centres if self.smooth else _covering
        down, across = (
            spread(windows, size).to(drops) for windows, size in ((rows, height), (columns, width))
        )
        grid = drops.view(-1, len(rows), len(columns))
        return torch.einsum("yi,bij,xj->byx", down, grid, across), scores[:, 0]

    def is_signed(self) -> bool:
        """Drops below zero are evidence against the objective."""
        return not self.absolute

    def why_zero(self) -> str:
        """No patch changed the score."""
        return (
            "covering a patch never changed the score; try a larger patch_px or another baseline "
            f"than {self.baseline!r} (covering an image that equals its baseline changes nothing)"
        )

    def _sizes(self, height: int, width: int) -> tuple[int, int]:
        shorter = min(height, width)
        patch = self.patch_px or max(1, shorter // 7)
        stride = self.stride_px or max(1, patch // 2)
        if patch > shorter:
            raise ParameterError(
                f"patch_px is {patch}, and the image has {width}×{height} px: the patch must be "
                f"smaller than the image, at most {shorter}",
                parameter="patch_px",
            )
        if stride > patch:
            raise ParameterError(
                f"stride_px is {stride} and patch_px {patch}: patches would leave gaps; "
                f"choose a stride of at most {patch}",
                parameter="stride_px",
            )
        return patch, stride

    def _scores(
        self,
        model: HookedModel,
        image: Tensor,
        cover: Tensor,
        objective: Objective,
        rows: list[Window],
        columns: list[Window],
    ) -> Tensor:
        """Scores: of the image itself, then with each patch covered, row by row."""
        patches = [(row, column) for row in rows for column in columns]
        differs = (image - cover).abs().amax(0) > _SAME
        changes = [
            bool(differs[top:bottom, left:right].any()) for (top, bottom), (left, right) in patches
        ]

        def make(start: int, stop: int) -> Tensor:
            covered = image.repeat(stop - start, 1, 1, 1)
            for copy, patch in zip(covered, range(start - 1, stop - 1), strict=True):
                if patch >= 0:
                    (top, bottom), (left, right) = patches[patch]
                    copy[:, top:bottom, left:right] = cover[:, top:bottom, left:right]
            return covered

        count = len(patches) + 1
        scores = perturbed_scores(model, image, objective, count, make, description="occluding")
        # Where covering changed no pixel, a difference would be rounding.
        return torch.where(torch.tensor([True, *changes], device=scores.device), scores, scores[0])


def _windows(size: int, patch: int, stride: int) -> list[Window]:
    """First pixel and last pixel + 1 of each patch along one side; the last patch is clipped."""
    count = math.ceil((size - patch) / stride) + 1
    return [(i * stride, min(i * stride + patch, size)) for i in range(count)]


def _covering(windows: list[Window], size: int) -> Tensor:
    """Weights `(size, len(windows))`: for each pixel, equal ones of the windows that cover it."""
    weights = torch.zeros(size, len(windows), dtype=torch.float64)
    for index, (start, stop) in enumerate(windows):
        weights[start:stop, index] = 1
    return weights / weights.sum(1, keepdim=True)


def _between_centres(windows: list[Window], size: int) -> Tensor:
    """Weights `(size, len(windows))`: for each pixel, linear ones of the two nearest centres."""
    centres = torch.tensor([(start + stop) / 2 for start, stop in windows], dtype=torch.float64)
    pixels = torch.arange(size, dtype=torch.float64) + 0.5
    if len(windows) == 1:
        return torch.ones(size, 1, dtype=torch.float64)
    upper = torch.searchsorted(centres, pixels).clamp(1, len(windows) - 1)
    low, high = centres[upper - 1], centres[upper]
    share = ((pixels - low) / (high - low)).clamp(0, 1)
    weights = torch.zeros(size, len(windows), dtype=torch.float64)
    weights.scatter_(1, (upper - 1)[:, None], (1 - share)[:, None])
    weights.scatter_(1, upper[:, None], share[:, None])
    return weights
