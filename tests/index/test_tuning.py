"""Tuning chooses the cheapest parameters that surely reach a recall."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from timmscope.index.backend import RecallBenchmark
from timmscope.index.tuning import WIDTHS, fastest_setting, geometric_steps, settings_for

BENCHMARK = RecallBenchmark(np.zeros((400, 2), "f4"), np.arange(400), np.zeros(400, "f4"), 10, "l2")


class Known:
    """An engine whose recall is `shares[effort]` at widths from 4, with a fixed error."""

    def __init__(self, shares: dict[int, float], error: float = 0.01) -> None:
        self.shares, self.error = shares, error
        self.measured: list[tuple[int, int]] = []

    def efforts(self) -> list[int]:
        return list(self.shares)

    def recalls(self, benchmark: RecallBenchmark, effort: int) -> Any:
        self.measured.append((effort, len(benchmark.queries)))
        shares = np.where(np.array(WIDTHS) >= 4, self.shares[effort], 0.1)
        return shares, np.full(len(WIDTHS), self.error)

    def scan_bytes(self, effort: int) -> float:
        return 1000.0 * effort

    def rerank_bytes(self, candidates: int) -> float:
        return float(candidates)


@pytest.mark.parametrize(
    ("shares", "chosen"),
    [
        ({1: 0.5, 2: 0.93, 3: 0.97, 4: 0.99}, 3),  # 0.97 - 2 * 0.01 is enough
        ({1: 0.5, 2: 0.96, 3: 0.965, 4: 0.99}, 4),  # 0.96 may be chance
        ({1: 0.5, 2: 0.955, 3: 0.96, 4: 0.96}, 2),  # none is sure: one that barely reaches it
        ({1: 0.5, 2: 0.9, 3: 0.94, 4: 0.93}, 3),  # none reaches it: the best
        ({1: 0.2, 2: 0.3}, 2),  # far too low: only the largest effort is measured with all
    ],
)
def test_the_cheapest_setting_that_surely_reaches_the_recall(
    shares: dict[int, float], chosen: int
) -> None:
    engine = Known(shares)
    best = settings_for(engine, BENCHMARK, 0.95, explore=False)[0]
    assert (best.effort, best.width, best.recall) == (chosen, 4, shares[chosen])
    assert best.cost == 1000 * chosen + 40
    assert (1, 400) not in engine.measured  # the first queries ruled it out


def test_efforts_of_higher_cost_are_measured_only_when_exploring() -> None:
    shares = dict.fromkeys((1, 2, 3, 4, 5, 6), 1.0)
    for explore, last in ((False, 1), (True, 4)):  # up to 4 times the cost of 1, and 40
        engine = Known(shares)
        settings_for(engine, BENCHMARK, 0.95, explore=explore)
        assert [effort for effort, count in engine.measured if count == 400][-1] == last


def test_measured_time_overrules_the_estimated_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(Known(dict.fromkeys((1, 2, 3), 1.0)), BENCHMARK, 0.95, explore=True)
    now = 0.0
    monkeypatch.setattr("timmscope.index.tuning.perf_counter", lambda: now)

    def search(setting: Any) -> None:
        nonlocal now
        now += {1: 5.0, 2: 2.0, 3: 3.0}[setting.effort]

    chosen, seconds = fastest_setting(settings, search)
    assert (chosen.effort, chosen.width, seconds) == (2, 4, 2.0)


def test_there_are_four_efforts_for_each_factor_of_two() -> None:
    assert geometric_steps(1, 1) == (1,)
    assert geometric_steps(1, 8) == (1, 2, 3, 4, 5, 6, 7, 8)
    assert geometric_steps(16, 64) == (16, 19, 23, 27, 32, 38, 45, 54, 64)
