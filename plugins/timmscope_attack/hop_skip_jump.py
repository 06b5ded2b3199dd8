"""HopSkipJump: follows the boundary by decisions alone, without gradients or scores."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    AttackTechnique,
    Ball,
    Goal,
    HookedModel,
    ImageSetName,
    NearestFound,
    ParameterError,
    image_generators,
)
from timmscope_attack.decisions import Decisions
from timmscope_attack.starting_images import find_starts, nearest_candidates, noise_candidates

_BLEND = 1e-3
"""Width of the last interval when the start is blended with the image."""
_FIRST_DELTA = 0.1
"""Length of the noise of the first step, in pixel units."""
_SMALL = 10_000
"""Largest number of values of an image for which γ is the paper's."""
_HALVINGS = 60
"""Largest number of halvings of a step."""
_RESERVE = 40
"""Queries that a step keeps for its length and the way back to the boundary."""
_BLOCK_VALUES = 1 << 22
"""Values that one draw of noise may have; it depends on the image's size alone."""
_DRAWS = 1000
"""Draws of random defences that a step may take."""


class HopSkipJump(AttackTechnique):
    """HopSkipJump walks along the boundary to the nearest image of another class by labels alone.

    `x ← bisect(x₀, x + ξ · v)`, from a point x on the boundary, where v is the direction in which
    the label changes: `v = Σ (φᵢ − mean φ) · uᵢ` at unit length (for linf its sign), with
    `φᵢ = ±1` as the copy `x + δ · uᵢ` with random noise u reaches the goal or not. The step starts
    with `ξ = ‖x − x₀‖ / √t` and is halved until it reaches the goal; the noise has the length
    `δ = γ · ‖x − x₀‖ / d` for images of d values, and 0.1 at the first step. Step t asks about
    `samples · √t` copies. Bisection ends at a share of `γ / d^1.5` (l2) or `γ / d²` (linf) of the
    way, and at 1e-5 at the latest, because the last bits of a forward decide from there on. With
    the paper's γ of 1, noise at 224×224 is smaller than these bits, too; so images of more than
    10,000 values have a γ of d / 100, which makes it 1 % of the distance.

    It needs labels only, so that it attacks a prediction function, a model without a gradient, or
    an objective that is reached or not. All copies of all images of a step go through the model in
    one call, or in as few as memory allows; the queries of an image do not depend on that. The
    first image is noise that reaches the goal, blended with the image: uniform noise of single
    pixels, or every second time of cells of the image, because some models give all fine noise one
    label. With `starts` it is the nearest of these images that reaches the goal, as a target class
    needs. Of a random defence each step meets new draws. Cost: at most `queries` forward passes per
    image; the noise of 5 steps takes 837, of 10 steps 2,243, of 20 steps 6,159 and of 40 steps
    17,145, and each step takes about 15 more.

    Paper:
        Chen, Jordan & Wainwright, "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack", S&P
        2020, arXiv:1904.02144.

    Inherited parameters:
        epsilon: largest change that counts as a success, in pixel units [0, 1]; by default any.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1], or `starts`
            have another size.
        ObjectiveError: a label or target is no class of the model, or the model has no classes.
        ParameterError: a parameter or `batch_size` is out of range, a target equals its label, or
            there are targets without `starts`.
        TechniqueError: what it returns is not finite.
        UnsupportedModel: the model takes no images of this size.
    """

    kind = "minimum"
    uses_gradients = False

    norm: Literal["l2", "linf"] = "l2"
    """Norm of the change: `l2`, its Euclidean length, or `linf`, its largest value."""
    steps: int = Field(default=40, ge=0)
    """Number of steps."""
    samples: int = Field(default=100, ge=1)
    """Noisy copies of the first step; step t has √t times as many."""
    max_samples: int = Field(default=10_000, ge=1)
    """Largest number of noisy copies of a step."""
    gamma: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Factor γ of the length of the noise and of the precision of the bisection; by default 1, and
    for images of more than 10,000 values their number / 100."""
    queries: int | None = Field(default=2500, ge=1)
    """Largest number of queries per image, after which it takes no further step; without it as many
    as the steps take."""
    starts: ImageSetName | None = None
    """Images to start from: a folder, or another image set. By default noise."""
    start_tries: int = Field(default=1000, ge=1)
    """Largest number of images that are tried as the start; the paper tries 10,000."""

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        """Walk from each start, and return the nearest image that was found to reach the goal.

        Raises:
            ImageError: `starts` have another size.
            ParameterError: there are targets without `starts`.
        """
        decide = Decisions(self, model, goal, images, self.queries)
        generators = image_generators(len(images))
        rows, at = self._starts(decide, images, goal, generators)
        ball = self.ball(images)
        at = decide.bisect(rows, images[rows], at, along="line", tolerance=_BLEND, draw=_DRAWS // 2)
        before = ball.size(at - images[rows]).to(at)  # distances before the bisection, (n,)
        at = self._to_boundary(decide, rows, images[rows], at, draw=_DRAWS // 2 + 100)
        nearest = NearestFound(images, self.norm)
        nearest.offer(rows, at, torch.ones_like(rows, dtype=torch.bool))
        first = nearest.sizes.tolist()
        for step in self.track(range(1, self.steps + 1), f"{self.title()} steps"):
            going = (decide.left(rows) >= 2 * _RESERVE).nonzero().flatten().to(rows.device)
            if not len(going):
                continue
            own = rows[going]
            moved, reached, jumped = self._stepped(
                decide, own, images[own], at[going], before[going], step, generators
            )
            at[going[reached]] = moved
            before[going[reached]] = jumped
            nearest.offer(own[reached], moved, torch.ones_like(own[reached], dtype=torch.bool))
        self.note("start_distance", [size if math.isfinite(size) else None for size in first])
        return nearest.images

    def _starts(
        self,
        decide: Decisions,
        images: Tensor,
        goal: Goal,
        generators: list[torch.Generator],
    ) -> tuple[Tensor, Tensor]:
        """Return the rows of images that have a start, and the starts."""
        tries = self.start_tries
        if self.starts is not None:
            among = self.open_images(self.starts)
            tries = min(tries, len(among))
            candidates = nearest_candidates(images, among, self.norm)
        elif goal.targets is not None:
            raise ParameterError(
                f"{self.title()} reaches a target class from an image of it, which noise never is: "
                "give starts, a folder with images of the target classes",
                parameter="starts",
            )
        else:
            candidates = noise_candidates(images, generators)
        rows, starts = find_starts(decide, images, candidates, tries)
        if len(rows) < len(images):
            advice = "other starts" if self.starts is not None else "starts, or more start_tries"
            warnings.warn(
                f"{self.title()} found no image to start from for {len(images) - len(rows)} of "
                f"{len(images)} images: give {advice}",
                stacklevel=2,
            )
        return rows, starts

    def _gamma(self, values: int) -> float:
        """Return γ for images of so many values."""
        if self.gamma is not None:
            return self.gamma
        return 1.0 if values <= _SMALL else values / 100

    def _to_boundary(
        self, decide: Decisions, rows: Tensor, originals: Tensor, changed: Tensor, draw: int
    ) -> Tensor:
        """Move images that reach the goal to the boundary, in the way of the norm."""
        values = originals.shape[1:].numel()
        power, along = (1.5, "line") if self.norm == "l2" else (2.0, "ball")
        tolerance = self._gamma(values) / values**power
        return decide.bisect(rows, originals, changed, along=along, tolerance=tolerance, draw=draw)

    def _stepped(
        self,
        decide: Decisions,
        rows: Tensor,
        originals: Tensor,
        at: Tensor,
        before: Tensor,
        step: int,
        generators: list[torch.Generator],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take one step of n images.

        Args:
            decide: says whether images reach the goal.
            rows: `(n,)` int64.
            originals: `(n, C, H, W)`.
            at: `(n, C, H, W)`, where they are on the boundary.
            before: `(n,)`, their distances before they were moved to the boundary.
            step: number of the step, from 1.
            generators: one for each image of the batch.

        Returns:
            The new images at the boundary `(m, C, H, W)`, which m of the n images these are,
            `(m,)` int64, and their distances before the bisection, `(m,)`.
        """
        draw, ball = step * _DRAWS, Ball(norm=self.norm, epsilon=0)
        values = at[0].numel()
        delta = self._gamma(values) * before / values
        if step == 1:
            delta = torch.full_like(before, _FIRST_DELTA)
        count = min(int(self.samples * math.sqrt(step)), self.max_samples)
        counts = (decide.left(rows) - _RESERVE).clamp(max=count).tolist()
        drawn = [generators[row] for row in rows.tolist()]
        direction = self._direction(decide, rows, at, delta, counts, drawn, draw)
        length = ball.size(at - originals).to(at) / math.sqrt(step)
        jumped, reached = at.clone(), torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        for halving in range(_HALVINGS):
            tried = (at + length.view(-1, 1, 1, 1) * direction).clamp(0, 1)
            moves = (tried != at).flatten(1).any(1) & ~reached
            asked = (moves.cpu() & (decide.left(rows) > 0)).nonzero().flatten().to(rows.device)
            if not len(asked):
                break
            good = asked[decide(rows[asked], tried[asked], draw + 1 + halving)]
            jumped[good], reached[good] = tried[good], True
            length = length / 2
        kept = reached.nonzero().flatten()
        before = ball.size(jumped[kept] - originals[kept]).to(at)
        moved = self._to_boundary(
            decide, rows[kept], originals[kept], jumped[kept], draw + 2 + _HALVINGS
        )
        return moved, kept, before

    def _direction(
        self,
        decide: Decisions,
        rows: Tensor,
        at: Tensor,
        delta: Tensor,
        counts: list[int],
        generators: list[torch.Generator],
        draw: int,
    ) -> Tensor:
        """Estimate the direction in which images at the boundary reach the goal, `(n, C, H, W)`."""
        flat = at.flatten(1)
        moved, signed = torch.zeros_like(flat), torch.zeros_like(flat)
        signs = torch.zeros_like(delta)
        for blocks in self._blocks(at, delta, counts, generators, decide.per_call):
            copies = torch.cat([copy for _, copy in blocks])
            own = torch.cat([rows[n].expand(len(copy)) for n, copy in blocks])
            reached = decide(own, copies, draw).to(flat) * 2 - 1  # φ
            for (number, copy), sign in zip(
                blocks, reached.split([len(copy) for _, copy in blocks]), strict=True
            ):
                unit = (copy.flatten(1) - flat[number]) / delta[number].clamp(min=1e-12)
                moved[number] += unit.sum(0)
                signed[number] += (sign[:, None] * unit).sum(0)
                signs[number] += sign.sum()
        mean = (signs / torch.tensor(counts).to(signs))[:, None]
        estimate = torch.where(mean.abs() == 1, signed, signed - mean * moved).view_as(at)
        return Ball(norm=self.norm, epsilon=0).steepest(estimate)

    def _blocks(
        self,
        at: Tensor,
        delta: Tensor,
        counts: list[int],
        generators: list[torch.Generator],
        per_call: int,
    ) -> Iterator[list[tuple[int, Tensor]]]:
        """Yield noisy copies for one call of the model after the other.

        The draws of an image depend on its size and its number of copies alone.

        Yields:
            For each block of copies of one image its number among the n, and the copies.
        """
        largest = max(1, _BLOCK_VALUES // at[0].numel())
        waiting: list[tuple[int, Tensor]] = []
        for number, count in enumerate(counts):
            for start in range(0, count, largest):
                size = min(largest, count - start)
                noise = self._noise(at[number], size, generators[number])
                copies = (at[number] + delta[number] * noise).clamp(0, 1)
                waiting.append((number, copies))
                if sum(len(each) for _, each in waiting) >= per_call:
                    yield waiting
                    waiting = []
        if waiting:
            yield waiting

    def _noise(self, image: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Return noise of Euclidean length 1, `(count, C, H, W)`: normal, for linf uniform."""
        if self.norm == "l2":
            noise = torch.randn(count, *image.shape, generator=generator)
        else:
            noise = 2 * torch.rand(count, *image.shape, generator=generator) - 1
        length = noise.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
        unit: Tensor = (noise / length).to(image)
        return unit
