"""Steps of gradient attacks inside a ball and inside [0, 1], also in L1."""

from __future__ import annotations

from torch import Tensor

from timmscope import Ball, project_l1_in_box

L1_SHARE = 0.2
"""Share of the values, those of the largest slopes, that a step in L1 changes."""


def direction(ball: Ball, gradient: Tensor, share: Tensor | float = L1_SHARE) -> Tensor:
    """Return a direction of unit norm along which the loss rises.

    It is the steepest one in L∞ and L2. In L1 that would be a single value; instead it is the signs
    of the values with the largest slopes, divided by their number (Tramèr & Boneh, NeurIPS 2019,
    arXiv:1904.13000).

    Args:
        ball: the ball, of which only the norm matters.
        gradient: `(B, C, H, W)`.
        share: share of the values that a step in L1 changes, `(B,)` or one for all; at least one
            value changes.
    """
    if ball.norm != "l1":
        return ball.steepest(gradient)
    slopes = gradient.abs().flatten(1)
    wanted = gradient.new_ones(len(gradient)) * share * slopes.shape[1]
    counts = wanted.round().long().clamp(1, slopes.shape[1])
    least = slopes.sort(1, descending=True).values.gather(1, counts[:, None] - 1)
    signs = gradient.sign() * (slopes >= least).view_as(gradient)
    return signs / signs.abs().flatten(1).sum(1).clamp(min=1).view(-1, 1, 1, 1)


def inside(ball: Ball, centre: Tensor, moved: Tensor) -> Tensor:
    """Return images in the ball around `centre` and in [0, 1], near those that moved out.

    In L∞ and L1 they are the nearest ones. In L2 the change is projected, then clipped.

    Args:
        ball: the ball.
        centre: `(B, C, H, W)` in [0, 1].
        moved: `(B, C, H, W)`.
    """
    if ball.norm == "l1":
        return (centre + project_l1_in_box(centre, moved - centre, ball.epsilon)).clamp(0, 1)
    return (centre + ball.project(moved - centre)).clamp(0, 1)
