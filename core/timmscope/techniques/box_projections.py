"""Projections that keep pixels in [0, 1]: onto an L1 ball, and onto a hyperplane.

To project onto the ball or the plane first and to clip afterwards is not the same: the clipped
change is shorter than it could be, which in L1 loses most of it (Croce & Hein, "Mind the Box:
l1-APGD for Sparse Adversarial Attacks on Image Classifiers", ICML 2021, arXiv:2103.01208). Sums
are in float64, since an image has 150,000 values.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from timmscope_registry import ParameterError

_Norm = Literal["linf", "l2", "l1"]
_STEPS = 200
"""Most steps of the search for a level; about ten are enough."""


def project_l1_in_box(images: Tensor, change: Tensor, radii: Tensor | float) -> Tensor:
    """Return the nearest change of L1 norm at most a radius that keeps the pixels in [0, 1].

    The nearest by Euclidean distance: `sign(y) · clip(|y| − θ, 0, u)`, where u is the room that a
    value has in this direction, and θ ≥ 0 the smallest for which the sum is in the ball. It is
    found exactly, by sorting the points at which a value begins or ceases to shrink.

    Args:
        images: `(B, C, H, W)` in [0, 1].
        change: `(B, C, H, W)`.
        radii: `(B,)`, or one for all, in pixel units [0, 1].
    """
    sizes = change.double().abs().flatten(1)
    origin = images.double().flatten(1)
    room = torch.where(change.flatten(1) > 0, 1 - origin, origin).clamp(min=0)
    limit = torch.as_tensor(radii, dtype=torch.float64, device=change.device).expand(len(change))
    # Σ clip(|y| − θ, 0, u) falls by a slope that each value enters at |y| − u and leaves at |y|.
    points = torch.cat([sizes - room, sizes], 1)
    enters = torch.cat([torch.full_like(room, -1.0), torch.ones_like(sizes)], 1)
    points, order = points.sort(1)
    slopes = enters.gather(1, order).cumsum(1)
    falls = slopes[:, :-1] * points.diff(dim=1)
    sums = torch.cat([torch.zeros_like(points[:, :1]), falls], 1).cumsum(1)
    sums += room.sum(1, keepdim=True)
    last = ((sums >= limit[:, None]).sum(1, keepdim=True) - 1).clamp(min=0)
    slope = slopes.gather(1, last)
    rest = limit[:, None] - sums.gather(1, last)
    threshold = points.gather(1, last) + torch.where(slope < 0, rest / slope, 0.0)
    kept = torch.minimum((sizes - threshold.clamp(min=0)).clamp(min=0), room)
    return change.sign() * kept.view_as(change).to(change)


def step_to_plane(images: Tensor, normals: Tensor, gaps: Tensor, norm: _Norm) -> Tensor:
    """Return the smallest changes d with `⟨normal, d⟩ = gap` that keep the pixels in [0, 1].

    Where no such change exists, it is the one that comes nearest to the plane. With a room u that
    a value has in the direction of its slope, the magnitudes are `min(u, t)` for L∞ and
    `min(u, t·|w|)` for L2, for one level t. It is found by Newton's method, which comes from below,
    because the gain is a concave function of t, and ends with the exact level. In L1 the values of
    the largest slopes move as far as they can (Croce & Hein, "Minimally Distorted Adversarial
    Examples with a Fast Adaptive Boundary Attack", ICML 2020, arXiv:1907.02044).

    Args:
        images: `(B, C, H, W)` in [0, 1].
        normals: `(B, C, H, W)`, w.
        gaps: `(B,)`, how much `⟨w, d⟩` should be, of either sign.
        norm: `linf`, `l2` or `l1`.

    Raises:
        ParameterError: the norm is another.
    """
    if norm not in ("linf", "l2", "l1"):
        raise ParameterError(f"a step to a plane has the norm {norm!r}: take linf, l2 or l1")
    slopes = normals.double().flatten(1) * gaps.double().sign()[:, None]
    origin, weights, gap = images.double().flatten(1), slopes.abs(), gaps.double().abs()[:, None]
    room = torch.where(slopes > 0, 1 - origin, origin).clamp(min=0)
    sizes = _greedy(weights, room, gap) if norm == "l1" else _levelled(weights, room, gap, norm)
    return (slopes.sign() * sizes).view_as(images).to(images)


def _greedy(weights: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """Spend room in the order of the weights until the gain is the gap."""
    ordered, order = weights.sort(dim=1, descending=True, stable=True)
    there = room.gather(1, order)
    gains = ordered * there
    missing = gap - (gains.cumsum(1) - gains)
    taken = torch.minimum((missing / ordered.clamp(min=1e-300)).clamp(min=0), there)
    return torch.zeros_like(room).scatter_(1, order, torch.where(ordered > 0, taken, 0.0))


def _levelled(weights: Tensor, room: Tensor, gap: Tensor, norm: _Norm) -> Tensor:
    """Let all values grow, in L2 in proportion to their weights, until the gain is the gap."""
    speed = torch.ones_like(weights) if norm == "linf" else weights
    moves = weights > 0
    rates = weights * speed
    ends = torch.where(moves, room / speed.clamp(min=1e-300), 0.0)
    full = weights * room
    level = torch.zeros_like(gap)
    for _ in range(_STEPS):
        ended = ends <= level
        rate = torch.where(ended, 0.0, rates).sum(1, keepdim=True)
        missing = gap - torch.where(ended, full, 0.0).sum(1, keepdim=True)
        found = torch.where(rate > 0, missing / rate, torch.inf)
        if bool((found <= level).all()):
            break
        level = torch.maximum(level, found)
    return torch.where(moves, torch.where(ends <= level, room, level * speed), 0.0)
