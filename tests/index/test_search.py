"""Search equals brute force in float64, for all metrics, with ties, and in any batches."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timmscope import VectorIndex, VectorIndexError

METRICS = ("cosine", "l2", "ip")


def brute_force(rows: Any, ids: Any, queries: Any, k: int, metric: str) -> tuple[Any, Any]:
    """Return ids and scores by the definition, one pair at a time; equal scores by id."""
    best_ids, best_scores = [], []
    for query in np.asarray(queries, np.float64):
        scores = []
        for row in np.asarray(rows, np.float64):
            if metric == "l2":
                scores.append(np.linalg.norm(query - row))
            elif metric == "ip":
                scores.append(float(np.dot(query, row)))
            else:
                lengths = np.linalg.norm(query) * np.linalg.norm(row)
                scores.append(float(np.dot(query, row)) / lengths if lengths else 0.0)
        sign = 1 if metric == "l2" else -1
        order = sorted(range(len(rows)), key=lambda i: (sign * np.float32(scores[i]), ids[i]))[:k]
        best_ids.append([ids[i] for i in order])
        best_scores.append([scores[i] for i in order])
    return np.array(best_ids), np.array(best_scores)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", [0, 1])
def test_answers_equal_brute_force_in_float64(metric: Any, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(700, 24)).astype(np.float32)
    ids = generator.permutation(5000)[:700]
    queries = generator.normal(size=(30, 24)).astype(np.float32)
    index = VectorIndex.from_array(rows, ids=ids, metric=metric)
    found = index.search(queries, 9)
    expected_ids, expected_scores = brute_force(rows, ids, queries, 9, metric)
    np.testing.assert_array_equal(found.ids, expected_ids)
    np.testing.assert_allclose(found.scores, expected_scores, rtol=2e-6, atol=2e-7)


@settings(max_examples=60, deadline=None)
@given(
    metric=st.sampled_from(METRICS),
    rows=st.integers(1, 120),
    dim=st.integers(1, 6),
    k=st.integers(1, 130),
    levels=st.integers(1, 3),
    seed=st.integers(0, 10_000),
)
def test_ties_are_sorted_by_id_in_rows_with_few_distinct_values(
    metric: Any, rows: int, dim: int, k: int, levels: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    table = generator.integers(0, levels + 1, (rows, dim)).astype(np.float32)
    ids = generator.permutation(10 * rows)[:rows]
    queries = generator.integers(0, levels + 1, (3, dim)).astype(np.float32)
    found = VectorIndex.from_array(table, ids=ids, metric=metric).search(queries, k)
    assert found.ids.shape == (3, min(k, rows))
    _, scores = brute_force(table, ids, queries, k, metric)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6, atol=1e-6)
    for query_ids, query_scores in zip(found.ids, found.scores, strict=True):
        keys = list(zip(-query_scores if metric != "l2" else query_scores, query_ids, strict=True))
        assert keys == sorted(keys)
    if metric != "cosine":  # sums of whole numbers are exact in float64, so ids are equal too
        expected, _ = brute_force(table, ids, queries, k, metric)
        np.testing.assert_array_equal(found.ids, expected)


@pytest.mark.parametrize("metric", METRICS)
def test_answers_do_not_depend_on_the_batch_of_a_query(metric: Any) -> None:
    generator = np.random.default_rng(3)
    rows = (generator.normal(size=(2000, 32)) + 50).astype(np.float32)
    queries = rows[:70] + 0.01
    index = VectorIndex.from_array(rows, metric=metric)
    together = index.search(queries, 8)
    alone = [index.search(query, 8) for query in queries]
    np.testing.assert_array_equal(together.ids, np.concatenate([hits.ids for hits in alone]))
    np.testing.assert_array_equal(together.scores, np.concatenate([hits.scores for hits in alone]))


def test_a_row_far_from_the_origin_is_at_distance_zero_from_itself() -> None:
    generator = np.random.default_rng(0)
    rows = (generator.normal(size=(3000, 64)) + 1000).astype(np.float32)
    found = VectorIndex.from_array(rows, metric="l2").search(rows[:40], 3)
    np.testing.assert_array_equal(found.ids[:, 0], np.arange(40))
    np.testing.assert_array_equal(found.scores[:, 0], 0)
    exact = np.linalg.norm(rows[found.ids[:, 1]].astype(float) - rows[:40].astype(float), axis=1)
    np.testing.assert_allclose(found.scores[:, 1], exact, rtol=1e-6)


def test_more_equal_rows_than_candidates_are_still_sorted_by_id() -> None:
    rows = np.zeros((3000, 8), np.float32)
    rows[:, 0] = 1
    rows[2500:, 1] = 5
    ids = np.arange(3000)[::-1].copy()
    for metric in METRICS:
        found = VectorIndex.from_array(rows, ids=ids, metric=metric).search(rows[0] - 0.0, 4)
        # rows 0..2499 are equal and carry ids 2999..500
        expected = [500, 501, 502, 503] if metric != "ip" else [0, 1, 2, 3]
        assert found.ids[0].tolist() == expected


def test_scores_equal_values_computed_by_hand() -> None:
    rows = [[3, 4], [6, 8], [-3, -4], [0, 0]]
    assert VectorIndex.from_array(rows, metric="l2").search([0, 0], 4).scores.tolist() == [
        [0, 5, 5, 10]
    ]
    assert VectorIndex.from_array(rows, metric="ip").search([1, 2], 4).scores.tolist() == [
        [22, 11, 0, -11]
    ]
    cosine = VectorIndex.from_array(rows).search([4, 3], 4)
    np.testing.assert_allclose(cosine.scores, [[0.96, 0.96, 0, -0.96]], atol=1e-7)
    assert cosine.ids.tolist() == [[0, 1, 3, 2]]


def test_a_vector_of_length_zero_has_cosine_zero_with_everything() -> None:
    hits = VectorIndex.from_array([[1, 0], [0, 2], [-1, 1]]).search([0, 0], 3)
    assert hits.scores.tolist() == [[0, 0, 0]]
    assert hits.ids.tolist() == [[0, 1, 2]]


def test_values_whose_squares_overflow_float32_are_ranked() -> None:
    rows = np.array([[1e30, 0], [2e30, 0], [0, 3e30], [1e-30, 0]], np.float32)
    assert VectorIndex.from_array(rows, metric="l2").search(rows[:1], 4).ids.tolist() == [
        [0, 1, 3, 2]
    ]
    assert VectorIndex.from_array(rows).search(rows[:1], 4).ids.tolist() == [[0, 1, 3, 2]]


def test_rows_with_nan_or_infinity_are_left_out_and_counted() -> None:
    rows = np.ones((6, 3), np.float64)
    rows[1, 0], rows[4, 2], rows[5, 1] = np.nan, np.inf, 1e300  # the last overflows float32
    index = VectorIndex.from_array(rows)
    assert (len(index), index.record.non_finite, index.ids.tolist()) == (3, 3, [0, 2, 3])


def test_searching_by_row_leaves_out_the_row_itself_even_among_duplicates() -> None:
    rows = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    index = VectorIndex.from_array(rows, ids=[4, 7, 9, 11], metric="l2")
    assert index.search_row(9, 2).ids.tolist() == [[4, 7]]
    assert index.search_row(4, 2).ids.tolist() == [[7, 9]]
    assert index.search_row(9, 99).ids.tolist() == [[4, 7, 11]]
    assert index.search_row(9, 2, exclude_self=False).ids.tolist() == [[4, 7]]


def test_more_neighbours_than_rows_are_all_rows() -> None:
    assert VectorIndex.from_array(np.eye(3)).search(np.eye(3), 50).ids.shape == (3, 3)


BAD = {
    "k is 0": lambda index: index.search([1, 0, 0], 0),
    "k is -2": lambda index: index.search_row(0, -2),
    r"expected \(Q, 3\)": lambda index: index.search([1, 2], 1),
    "1 of 2 queries hold NaN or infinity, the first is 1": lambda index: index.search(
        [[1, 2, 3], [0, np.nan, 0]], 1
    ),
    "no row 99": lambda index: index.search_row(99),
    "belongs to no store": lambda index: index.save(),
    "search by vector": lambda index: index.search_image(None, None),
}


@pytest.mark.parametrize("message", BAD)
def test_a_wrong_search_is_a_one_line_error(message: str) -> None:
    with pytest.raises(VectorIndexError, match=message) as caught:
        BAD[message](VectorIndex.from_array(np.eye(3)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": np.empty((0, 4))}, "no row to index"),
        ({"rows": np.full((2, 4), np.nan)}, "all 2 hold NaN or infinity"),
        ({"rows": np.ones(4)}, r"expected numbers \(N, d\)"),
        ({"rows": np.ones((2, 2)), "ids": [1, 1]}, "none may occur twice"),
        ({"rows": np.ones((2, 2)), "ids": [-1, 1]}, "must not be negative"),
        ({"rows": np.ones((2, 2)), "ids": [1]}, "one integer each"),
        ({"rows": np.ones((2, 2)), "metric": "manhattan"}, "cosine, l2, ip"),
        ({"rows": np.ones((2, 2)), "backend": "flut"}, "flat"),
    ],
)
def test_a_wrong_build_is_a_one_line_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(VectorIndexError, match=message) as caught:
        VectorIndex.from_array(**arguments)
    assert "\n" not in str(caught.value)


def test_importing_the_index_package_does_not_import_faiss() -> None:
    code = "import timmscope.index, sys; assert 'faiss' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def _search_in_child(index: VectorIndex, queue: Any) -> None:
    queue.put(index.search(np.eye(64)[:40], 2).ids.tolist())


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_can_search_an_index_that_its_parent_has_searched() -> None:
    rows = np.random.default_rng(0).normal(size=(4000, 64)).astype(np.float32)
    index = VectorIndex.from_array(rows)
    expected = index.search(np.eye(64)[:40], 2).ids.tolist()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_search_in_child, args=(index, queue))
    child.start()
    try:
        assert queue.get(timeout=300) == expected
    finally:
        child.kill()
        child.join()
