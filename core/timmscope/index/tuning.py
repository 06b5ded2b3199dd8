"""Chooses search parameters: the cheapest that reach a recall, by estimated or measured time."""

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
"""The numbers of candidates per wanted neighbour that are tried."""
_FIRST_QUERIES = 100
"""Number of queries with which efforts that are far too small are ruled out."""
_NEAR = 0.05
"""Efforts whose recall on the first queries is lower by more than this are ruled out."""
_COST_ERROR = 4
"""Estimated costs may be wrong by this factor; within it, settings are timed."""
_TIMED = 6
"""Number of settings that are timed."""
_RUNS = 3
"""Number of runs for each timed setting."""

Recalls = npt.NDArray[np.float64]


class Setting(NamedTuple):
    """Search parameters, their estimated cost in bytes, and their recall and its standard error."""

    cost: float
    effort: int
    width: int
    recall: float
    error: float


class Tunable(Protocol):
    """The methods that tuning needs of an engine; see `RerankedBackend`."""

    def efforts(self) -> Sequence[int]:
        """Return the efforts, smallest first."""
        ...

    def recalls(self, benchmark: RecallBenchmark, effort: int) -> tuple[Recalls, Recalls]:
        """Return recall and its standard error at each of `WIDTHS`."""
        ...

    def scan_bytes(self, effort: int) -> float:
        """Return the cost of a search with an effort."""
        ...

    def rerank_bytes(self, candidates: int) -> float:
        """Return the cost of scoring candidates."""
        ...


def settings_for(
    engine: Tunable, benchmark: RecallBenchmark, recall: float, *, explore: bool
) -> list[Setting]:
    """Return settings that reach a recall, the cheapest first; or else those with the highest.

    Recall on other queries differs by about the standard error. So only settings that exceed the
    recall by two standard errors count, unless there are none.

    Args:
        engine: the engine to tune.
        benchmark: the queries to measure recall with.
        recall: the wanted share of true neighbours.
        explore: include settings of higher estimated cost, in case the estimate is wrong.
    """
    few, near = benchmark.part(slice(_FIRST_QUERIES)), False
    measured: list[Setting] = []
    cheapest = np.inf
    for effort in track(engine.efforts(), "measuring recall"):
        near = near or effort == engine.efforts()[-1]
        near = near or engine.recalls(few, effort)[0][-1] > recall - _NEAR
        if not near:
            continue
        if engine.scan_bytes(effort) > cheapest * (_COST_ERROR if explore else 1):
            break  # all further efforts cost more
        for width, found, error in zip(WIDTHS, *engine.recalls(benchmark, effort), strict=True):
            cost = engine.scan_bytes(effort) + engine.rerank_bytes(width * benchmark.k)
            measured.append(Setting(cost, effort, width, float(found), float(error)))
            if found - 2 * error >= recall:
                cheapest = min(cheapest, cost)
    best = max(item.recall for item in measured)
    surely = [item for item in measured if item.recall - 2 * item.error >= recall]
    barely = [item for item in measured if item.recall >= recall]
    return sorted(surely or barely or [item for item in measured if item.recall >= best])


def fastest_setting(
    settings: list[Setting], search: Callable[[Setting], object]
) -> tuple[Setting, float]:
    """Time the cheapest settings, one per effort, and return the fastest and its seconds."""
    cheapest: dict[int, Setting] = {}
    for item in settings:
        if item.cost <= _COST_ERROR * settings[0].cost:
            cheapest.setdefault(item.effort, item)
    times = []
    for item in list(cheapest.values())[:_TIMED]:
        seconds = []
        for _ in range(_RUNS):
            began = perf_counter()
            search(item)
            seconds.append(perf_counter() - began)
        times.append((min(seconds), item))
    seconds_taken, chosen = min(times)
    return chosen, seconds_taken


@cache
def geometric_steps(first: int, last: int) -> tuple[int, ...]:
    """Return whole numbers from `first` to `last`, four for each factor of 2."""
    count = round(4 * np.log2(last / first))
    return tuple(sorted({round(first * 2 ** (step / 4)) for step in range(count)} | {last}))
