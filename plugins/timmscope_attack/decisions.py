"""Decisions of a model about images: all that a decision-based attack learns, and what it pays.

An attack asks about copies of several images in one call. Each copy is a query of its image, and no
image is asked about more often than its budget allows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from timmscope import (
    AttackTechnique,
    Goal,
    HookedModel,
    another_draw,
    images_per_forward,
    images_per_pass,
)

_COPIES_BYTES = 1 << 28
"""Memory for the copies of one call of the model."""
_CACHED_VALUES = 1 << 20
"""Values of the copies of one call on a CPU, whose caches more of them overflow."""
_FINEST = 1e-5
"""Smallest share of the way at which a bisection ends: so near to the boundary, the last bits of a
forward, which depend on the batch, begin to decide."""


class Decisions:
    """Says whether changed images reach the goal.

    Args:
        attack: the attack that asks.
        model: the model.
        goal: the goal of all B images.
        images: `(B, C, H, W)`, of which only number and size matter.
        budget: largest number of queries of each image; None for any.

    Attributes:
        used: `(B,)` int64 on the CPU, queries of each image so far.
        per_call: images that go through the model at once.
    """

    def __init__(
        self,
        attack: AttackTechnique,
        model: HookedModel,
        goal: Goal,
        images: Tensor,
        budget: int | None,
    ) -> None:
        self.used = torch.zeros(len(images), dtype=torch.long)
        copies = _COPIES_BYTES // (images[0].numel() * images.element_size())
        if model.device.type == "cpu":
            cached = _CACHED_VALUES // images[0].numel()
            copies = min(copies, max(images_per_forward(model, images), cached))
        self.per_call = max(1, min(images_per_pass(model, images), copies))
        self._attack, self._model, self._goal, self._budget = attack, model, goal, budget

    def left(self, rows: Tensor) -> Tensor:
        """Return how many queries are left for some of the images, `(n,)` int64."""
        used = self.used[rows.cpu()]
        if self._budget is None:
            return torch.full_like(used, torch.iinfo(torch.long).max)
        return (self._budget - used).clamp(min=0)

    def __call__(self, rows: Tensor, changed: Tensor, draw: int) -> Tensor:
        """Whether each changed image reaches the goal, `(n,)`.

        Args:
            rows: `(n,)` int64, which of the B images each of them is a copy of; repeated ones are
                several copies of one image.
            changed: `(n, C, H, W)` in [0, 1].
            draw: number of the draw of random defences.
        """
        reached = []
        for own, part in zip(rows.split(self.per_call), changed.split(self.per_call), strict=True):
            goal = self._goal.rows(own)
            with self._attack.only(own), another_draw(draw), torch.no_grad():
                reached.append(goal.reached(goal.outputs(self._model, part)))
        self.used += rows.cpu().bincount(minlength=len(self.used))
        return torch.cat(reached)

    def bisect(
        self,
        rows: Tensor,
        originals: Tensor,
        changed: Tensor,
        *,
        along: str,
        tolerance: float,
        draw: int,
    ) -> Tensor:
        """Move images that reach the goal towards their originals, to where they just reach it.

        It ends where the interval is within the tolerance, or within 1e-5 of the first, where
        numbers have no value between its ends, or where the budget is spent.

        Args:
            rows: `(n,)` int64, which of the B images they are; none twice.
            originals: `(n, C, H, W)`.
            changed: `(n, C, H, W)`, images that reach the goal.
            along: `line` for `original + t · change`, `ball` for `original + clip(change, ±t)`.
            tolerance: width of the last interval of t, as a share of the first: that is [0, 1] on
                a line, and [0, ‖change‖∞] in a ball.
            draw: number of the first draw of random defences.

        Returns:
            The last images that were seen to reach the goal, `(n, C, H, W)`.
        """
        change = changed - originals
        high = torch.ones_like(change[:, 0, 0, 0])
        if along == "ball":
            high = change.abs().flatten(1).amax(1)
        low, found = torch.zeros_like(high), changed.clone()
        width = max(tolerance, _FINEST) * high
        while True:
            middle = (low + high) / 2
            open_ = (high - low > width) & (middle > low) & (middle < high)
            asked = (open_.cpu() & (self.left(rows) > 0)).nonzero().flatten().to(rows.device)
            if not len(asked):
                return found
            level = middle[asked].view(-1, 1, 1, 1)
            moved = change[asked]
            moved = moved.clamp(-level, level) if along == "ball" else level * moved
            tried = (originals[asked] + moved).clamp(0, 1)
            reached = self(rows[asked], tried, draw)
            found[asked[reached]] = tried[reached]
            high[asked[reached]] = middle[asked[reached]]
            low[asked[~reached]] = middle[asked[~reached]]
            draw += 1
