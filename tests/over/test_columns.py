"""Shares, means and medians over images have the right intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from timmscope.techniques.over.columns import (
    Columns,
    mean_interval,
    median_interval,
    share_interval,
)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(0, 10, 0.0, 0.27753), (5, 10, 0.23659, 0.76341), (10, 10, 0.72247, 1.0)],
)
def test_a_share_has_wilsons_interval(hits, count, low, high):
    assert share_interval(hits, count) == pytest.approx((low, high), abs=1e-5)


def test_the_interval_of_a_median_is_between_two_sorted_values():
    # Binomial(10, 1/2): P(X <= 1) = 11/1024 = 0.0107 and P(X <= 2) = 56/1024 = 0.0547.
    values = np.array([7.0, 1, 9, 3, 5, math.inf, 2, 8, 4, 6])
    assert median_interval(values) == (2.0, 9.0)
    assert median_interval(np.arange(6.0)) == (0.0, 5.0)
    assert all(map(math.isnan, median_interval(np.arange(5.0))))
    low, high = median_interval(np.arange(10_000.0))
    assert (low, high) == (4901.0, 5098.0)


def test_the_interval_of_a_median_covers_it_in_95_percent_of_samples():
    generator = np.random.default_rng(0)
    samples = generator.exponential(size=(2000, 25))
    inside = [low <= math.log(2) <= high for low, high in map(median_interval, samples)]
    assert 0.94 <= np.mean(inside) <= 0.975


def test_means_of_many_values_need_no_bootstrap():
    values = np.random.default_rng(0).normal(3.0, 2.0, 10_000)
    low, high = mean_interval(values, 0)
    half = 1.959964 * values.std(ddof=1) / 100
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half))
    few = mean_interval(values[:50], 0)
    assert few[0] < values[:50].mean() < few[1]


def test_facts_become_columns():
    facts = [
        (0, {"ok": True, "size": 1, "after": "cat"}),
        (2, {"ok": None, "size": math.inf, "after": "dog"}),
        (3, {"ok": False, "size": 2.5, "after": "cat", "late": 4}),
    ]
    columns = Columns.of(4, iter(facts))
    assert list(columns.names) == ["ok", "size", "after", "late"]
    assert columns.shares == {"ok"}
    np.testing.assert_array_equal(columns.values["ok"], [1, np.nan, np.nan, 0])
    np.testing.assert_array_equal(columns.values["size"], [1, np.nan, np.inf, 2.5])
    np.testing.assert_array_equal(columns.values["late"], [np.nan, np.nan, np.nan, 4])
    assert dict(columns.texts["after"]) == {"cat": 2, "dog": 1}
    assert "after" not in columns.values
