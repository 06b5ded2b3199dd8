"""The bound is the quantile of the beta distribution, and the published values."""

from __future__ import annotations

from statistics import NormalDist

import pytest

from timmscope_defence.binomial import lower_bound, needed_hits

GOLDEN = [
    (100_000, 100_000, 0.99993092, 3.811457),
    (99_000, 100_000, 0.98898934, 2.290000),
    (90_000, 100_000, 0.89703650, 1.264845),
    (51_000, 100_000, 0.50510935, 0.012808),
    (1000, 1000, 0.99311605, 2.463263),
    (990, 1000, 0.97603619, 1.978010),
    (100, 100, 0.93325430, 1.500475),
]


@pytest.mark.parametrize(("hits", "trials", "bound", "radius"), GOLDEN)
def test_bound_and_radius_of_the_reference(
    hits: int, trials: int, bound: float, radius: float
) -> None:
    found = lower_bound(hits, trials, 0.001)
    assert found == pytest.approx(bound, abs=5e-9)
    assert NormalDist().inv_cdf(found) == pytest.approx(radius, abs=5e-7)


@pytest.mark.parametrize("trials", [1, 2, 7, 50, 1000])
@pytest.mark.parametrize("alpha", [1e-6, 0.001, 0.05, 0.4])
def test_it_is_the_quantile_of_the_beta_distribution(trials: int, alpha: float) -> None:
    beta = pytest.importorskip("scipy.stats").beta
    for hits in {0, 1, trials // 3, trials // 2 + 1, trials - 1, trials}:
        expected = 0.0 if hits == 0 else beta.ppf(alpha, hits, trials - hits + 1)
        assert lower_bound(hits, trials, alpha) == pytest.approx(expected, rel=1e-10, abs=1e-15)


def test_one_hit_of_two_by_hand() -> None:
    # P(X >= 1) = 1 - (1 - p)^2 = alpha
    assert lower_bound(1, 2, 0.19) == pytest.approx(0.1, abs=1e-12)


@pytest.mark.parametrize("alpha", [1e-6, 0.001, 0.05, 0.4])
def test_needed_hits_are_the_least_whose_bound_is_one_half(alpha: float) -> None:
    for trials in (1, 2, 5, 12, 30):
        enough = [k for k in range(trials + 1) if lower_bound(k, trials, alpha) >= 0.5]
        assert needed_hits(trials, alpha) == (enough[0] if enough else trials + 1)
