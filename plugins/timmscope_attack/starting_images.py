"""Finds images that reach the goal of a decision-based attack, from which it starts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from timmscope import Ball, ImageError, ImageSet, Norm
from timmscope_attack.decisions import Decisions

_LARGEST_GROUP = 64

Candidates = Callable[[int, int, int], list[Tensor]]
"""Gives the images to try for an image: its row, and the first and last number of a group."""


def noise_candidates(images: Tensor, generators: list[torch.Generator]) -> Candidates:
    """Return uniform noise images, drawn for each image from its own generator.

    Those of even numbers are noise of single pixels; those of odd numbers of 1, 2×2, 4×4 and 8×8
    cells in turn, because a model may give all fine noise the same label.
    """
    channels, height, width = images.shape[1:]

    def drawn(row: int, number: int) -> Tensor:
        cells = 2 ** (number // 2 % 4) if number % 2 else max(height, width)
        grid = (channels, min(cells, height), min(cells, width))
        noise = torch.rand(grid, generator=generators[row])
        return functional.interpolate(noise[None], [height, width], mode="nearest")[0].to(images)

    return lambda row, start, stop: [drawn(row, number) for number in range(start, stop)]


def nearest_candidates(images: Tensor, among: ImageSet, norm: Norm) -> Candidates:
    """Return the images of a set, for each image from the nearest to the farthest.

    Raises:
        ImageError: their size is not that of the attacked images.
    """
    if among.shape != tuple(images.shape[1:]):
        raise ImageError(
            f"the starts have shape {among.shape}, and the attacked images "
            f"{tuple(images.shape[1:])}: give starts of the same size"
        )
    ball = Ball(norm=norm, epsilon=0)
    loaded = (among.load(number).image.to(images) for number in range(len(among)))
    distances = torch.stack([ball.size(images - each) for each in loaded], 1)  # (B, n)
    order = distances.argsort(dim=1, stable=True).tolist()

    def nearest(row: int, start: int, stop: int) -> list[Tensor]:
        return [among.load(number).image.to(images) for number in order[row][start:stop]]

    return nearest


def find_starts(
    decide: Decisions, images: Tensor, candidates: Candidates, tries: int
) -> tuple[Tensor, Tensor]:
    """Return for each image the first candidate that reaches the goal.

    Candidates are asked about in groups of 1, 2, 4 … of each image, so that few calls of the model
    find a rare one, and a frequent one costs few queries.

    Args:
        decide: says whether candidates reach the goal.
        images: `(B, C, H, W)`.
        candidates: gives the candidates of each image.
        tries: number of candidates of each image.

    Returns:
        The rows of the images for which one is found, `(n,)` int64, and these candidates.
    """
    starts = images.clone()
    found = torch.zeros(len(images), dtype=torch.bool)
    start, size, group = 0, 1, 0
    while start < tries and not bool(found.all()):
        stop = min(start + size, tries)
        missing = (~found).nonzero().flatten()
        room = decide.left(missing).clamp(max=stop - start).tolist()
        rows, tried = [], []
        for row, count in zip(missing.tolist(), room, strict=True):
            tried += candidates(row, start, start + count)
            rows += [row] * count
        if not rows:
            break
        own = torch.tensor(rows, device=images.device)
        reached = decide(own, torch.stack(tried), draw=group).tolist()
        for row, image, good in zip(rows, tried, reached, strict=True):
            if good and not found[row]:
                starts[row], found[row] = image, True
        start, size, group = stop, min(2 * size, _LARGEST_GROUP), group + 1
    rows_found = found.nonzero().flatten().to(images.device)
    return rows_found, starts[rows_found]
