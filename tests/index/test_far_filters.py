"""Recall stays high when a filter or a removal leaves no rows near a query.

Recall is measured without a filter, near the queries. If all rows that may be found are far away,
the lists or nodes that are searched without a filter are the wrong ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from timmscope import VectorIndex

generator = np.random.default_rng(0)
WIDTH, CLUSTERS = 16, 80
CENTRES = generator.normal(size=(CLUSTERS, WIDTH)).astype(np.float32)
CLUSTER = np.arange(8000) % CLUSTERS
ROWS = CENTRES[CLUSTER] + 0.3 * generator.normal(size=(8000, WIDTH)).astype(np.float32)
QUERIES = CENTRES[:40] + 0.3 * generator.normal(size=(40, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module", params=["ivf", "hnsw"])
def index(request: pytest.FixtureRequest) -> VectorIndex:
    return VectorIndex.from_array(ROWS, metric="l2", backend=request.param)


@pytest.fixture(autouse=True)
def wide_filters_are_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timmscope.index.reranked._EXACT_ROWS", 100)


def recall(found: Any, queries: Any, allowed: Any) -> float:
    """Return the share of the 10 true neighbours among `allowed` that were found."""
    distances = np.linalg.norm(ROWS[allowed][None].astype(float) - queries[:, None], axis=2)
    true = allowed[np.argsort(distances, axis=1, kind="stable")[:, :10]]
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(true, found.ids, strict=True)]))


def test_without_a_filter_the_recall_is_as_requested(index: VectorIndex) -> None:
    assert recall(index.search(QUERIES), QUERIES, np.arange(8000)) > 0.94


@pytest.mark.parametrize("near", [1, 10, 40, 70])
def test_the_best_rows_outside_the_nearest_clusters_are_found(
    index: VectorIndex, near: int
) -> None:
    shares = []
    for query in QUERIES[:15]:
        nearest = np.argsort(np.linalg.norm(CENTRES - query, axis=1))[:near]
        allowed = np.flatnonzero(~np.isin(CLUSTER, nearest))
        shares.append(recall(index.search(query, where=allowed), query[None], allowed))
    assert np.mean(shares) > 0.94


def test_the_best_of_the_farthest_rows_are_found(index: VectorIndex) -> None:
    for query in QUERIES[:5]:
        order = np.argsort(np.linalg.norm(ROWS - query, axis=1))
        allowed = np.sort(order[5000:])
        assert recall(index.search(query, where=allowed), query[None], allowed) == 1


@pytest.mark.parametrize("backend", ["ivf", "hnsw"])
def test_remaining_rows_around_removed_clusters_are_found(backend: str) -> None:
    index = VectorIndex.from_array(ROWS, metric="l2", backend=backend)
    nearest = np.argsort(np.linalg.norm(CENTRES[None] - QUERIES[:5, None], axis=2), axis=1)[:, :8]
    gone = np.flatnonzero(np.isin(CLUSTER, nearest))
    index.remove(gone)
    left = np.setdiff1d(np.arange(8000), gone)
    assert recall(index.search(QUERIES), QUERIES, left) > 0.94
    index.compact()
    index.add(ROWS[gone[:50]], gone[:50])  # the cached list numbers are out of date
    left = np.union1d(left, gone[:50])
    some = left[::2]
    assert recall(index.search(QUERIES, where=some), QUERIES, some) > 0.94


@pytest.mark.parametrize("k", [500, 3000, 7999])
def test_many_neighbours_are_in_order(index: VectorIndex, k: int) -> None:
    found = index.search(QUERIES[:3], k)
    distances = np.linalg.norm(ROWS[None].astype(float) - QUERIES[:3, None], axis=2)
    for row, ids, scores in zip(distances, found.ids, found.scores, strict=True):
        assert len(set(ids.tolist())) == k
        np.testing.assert_allclose(scores, row[ids], rtol=1e-6)
        assert (np.diff(scores) >= 0).all()
        assert np.isin(np.argsort(row)[:k], ids).mean() > 0.94
