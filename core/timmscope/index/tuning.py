"""Which search parameters: the cheapest that reach a recall, by estimated cost or by the clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from time import perf_counter
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from timmscope.index.backend import RecallBenchmark
from timmscope.progress import track

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Candidates to each neighbour asked for, as tried."""
_FIRST = 100
"""Queries that tell which efforts are too small to be measured with all."""
_NEAR = 0.05
"""Efforts that miss the recall by more with the first queries are not measured with all."""
_DOUBT = 4
"""Estimated costs may be wrong by this factor; within it, settings are timed."""
_TIMED = 6
"""How many settings are timed,"""
_RUNS = 3
"""and how often each."""

Shares = npt.NDArray[np.float64]


class Setting(NamedTuple):
    """Search parameters, what they should cost, and the recall they reach with its error."""

    cost: float
    effort: int
    width: int
    share: float
    error: float


class Tunable(Protocol):
    """What is to be tuned."""

    def efforts(self) -> Sequence[int]:
        """How far it may look, least first."""
        ...

    def recalls(self, exam: RecallBenchmark, effort: int) -> tuple[Shares, Shares]:
        """Recall at each of the widths, and its standard error."""
        ...

    def scan_bytes(self, effort: int) -> float:
        """What looking so far costs."""
        ...

    def refine_bytes(self, candidates: int) -> float:
        """What scoring so many candidates costs."""
        ...


def settings_for(
    engine: Tunable, exam: RecallBenchmark, recall: float, *, doubt: bool
) -> list[Setting]:
    """Settings that reach a recall, the cheapest first; or else the one that comes nearest.

    The recall of other queries is that of the exam give or take its standard error, so only
    settings that reach it by two of these count, unless none does.

    Args:
        engine: what is to be tuned.
        exam: what recall is measured by.
        recall: the share of true neighbours wanted.
        doubt: look on, at settings that should cost more, in case the estimate is wrong.
    """
    few, near = exam.part(slice(_FIRST)), False
    reached: list[Setting] = []
    cheapest = np.inf
    for effort in track(engine.efforts(), "measuring recall"):
        near = near or effort == engine.efforts()[-1]
        near = near or engine.recalls(few, effort)[0][-1] > recall - _NEAR
        if not near:
            continue
        if engine.scan_bytes(effort) > cheapest * (_DOUBT if doubt else 1):
            break  # looking further can only cost more
        for width, share, error in zip(WIDTHS, *engine.recalls(exam, effort), strict=True):
            cost = engine.scan_bytes(effort) + engine.refine_bytes(width * exam.k)
            reached.append(Setting(cost, effort, width, float(share), float(error)))
            if share - 2 * error >= recall:
                cheapest = min(cheapest, cost)
    best = max(item.share for item in reached)
    surely = [item for item in reached if item.share - 2 * item.error >= recall]
    just = [item for item in reached if item.share >= recall]
    return sorted(surely or just or [item for item in reached if item.share >= best])


def quickest(settings: list[Setting], search: Callable[[Setting], object]) -> tuple[Setting, float]:
    """Time the cheapest settings, one to each effort; the quickest and its seconds."""
    least: dict[int, Setting] = {}
    for item in settings:
        if item.cost <= _DOUBT * settings[0].cost:
            least.setdefault(item.effort, item)
    times = []
    for item in list(least.values())[:_TIMED]:
        seconds = []
        for _ in range(_RUNS):
            began = perf_counter()
            search(item)
            seconds.append(perf_counter() - began)
        times.append((min(seconds), item))
    seconds_taken, chosen = min(times)
    return chosen, seconds_taken


@cache
def steps(first: int, last: int) -> tuple[int, ...]:
    """Whole numbers from `first` to `last`, four to a doubling."""
    count = round(4 * np.log2(last / first))
    return tuple(sorted({round(first * 2 ** (step / 4)) for step in range(count)} | {last}))
