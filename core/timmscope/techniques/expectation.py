"""Averages over the draws of a model's random defences: expectation over transformation (EOT).

An attack of a random defence that follows the gradient of one draw breaks this draw, and not the
next. The mean gradient of several draws, new ones at each step, is an estimate of the gradient of
the expected loss (Athalye, Carlini & Wagner, ICML 2018, arXiv:1802.00420).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from timmscope.draws import another_draw, image_rows
from timmscope.models import HookedModel

DRAWS = 10
"""Default number of draws per step for a model with a random defence."""


def mean_over_draws(
    model: HookedModel,
    compute: Callable[[], tuple[Tensor, ...]],
    *,
    step: int,
    draws: int | None = None,
) -> tuple[Tensor, ...]:
    """Average what `compute` returns over draws of the model's random defences.

    Args:
        model: the model; without a random defence, `compute` is called once.
        compute: runs the model, and returns tensors such as logits and a gradient.
        step: number of the step, from 0; each step has draws of its own.
        draws: number of draws; by default 10.
    """
    count = (draws or DRAWS) if model.has_random_defence else 1
    total: tuple[Tensor, ...] = ()
    for number in range(count):
        with another_draw(step * count + number):
            found = compute()
        total = tuple(a + b for a, b in zip(total, found, strict=True)) if total else found
    return tuple(value / count for value in total) if count > 1 else total


@contextlib.contextmanager
def fresh_draw(rows: Iterable[int]) -> Iterator[None]:
    """Give random defences a draw that no technique meets, for these rows of the batch."""
    with another_draw(-1), image_rows(rows):
        yield


def batch_logits(model: HookedModel, images: Tensor, step: int) -> Tensor:
    """Return logits `(B, K)` under a draw of random defences that no technique meets.

    Args:
        model: the model.
        images: `(B, C, H, W)` in [0, 1].
        step: images per pass.
    """
    logits = []
    for start in range(0, len(images), step):
        part = images[start : start + step]
        with fresh_draw(range(start, start + len(part))):
            logits.append(model(part).float())
    return torch.cat(logits)
