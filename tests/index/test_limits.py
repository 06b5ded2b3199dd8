"""Rows and queries that an index cannot handle are one-line errors, and resources are limited."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from timmscope import VectorIndex, VectorIndexError
from timmscope.index.table import RowTable

ROWS = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)


@pytest.mark.parametrize("backend", ["ivf", "hnsw"])
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_rows_too_long_for_float32_codes_are_named(backend: str, metric: Any) -> None:
    rows = ROWS.copy()
    rows[7] = 1e30  # FAISS would end the process
    with pytest.raises(VectorIndexError, match=r"row with id 7 is longer .* backend='flat'"):
        VectorIndex.from_array(rows, metric=metric, backend=backend)
    index = VectorIndex.from_array(ROWS, metric=metric, backend=backend)
    with pytest.raises(VectorIndexError, match="row with id 1007 is longer"):
        index.add(rows[7:8], [1007])
    assert len(index) == 400


@pytest.mark.parametrize("backend", ["flat", "ivf", "hnsw"])
def test_long_queries_are_answered_exactly(backend: str) -> None:
    index = VectorIndex.from_array(ROWS, metric="ip", backend=backend)
    query = np.array([1e25, 0, 0, 0, 0, 0], np.float32)
    expected = np.argsort(-ROWS[:, 0], kind="stable")[:5]
    assert index.search(query, 5).ids[0].tolist() == expected.tolist()
    together = index.search(np.stack([ROWS[3], query, ROWS[4]]), 5).ids
    assert together[1].tolist() == expected.tolist()
    np.testing.assert_array_equal(together[::2], index.search(ROWS[3:5], 5).ids)


@pytest.mark.parametrize("backend", ["flat", "ivf", "hnsw"])
def test_the_error_of_too_little_memory_names_the_needed_bytes(backend: str) -> None:
    with pytest.raises(VectorIndexError, match=r"\d+ bytes.*memory is 500: allow more"):
        VectorIndex.from_array(ROWS, backend=backend, memory=500)


@pytest.mark.parametrize("queries", ["abc", [[1, 2], [3]], None, np.ones((1, 1, 6)), np.ones(5)])
def test_queries_of_wrong_shape_or_type_are_refused(queries: Any) -> None:
    with pytest.raises(VectorIndexError, match=r"expected \(Q, 6\)"):
        VectorIndex.from_array(ROWS).search(queries)


@pytest.mark.parametrize("k", [0, -1, 2.5, "3", None])
def test_k_must_be_a_positive_whole_number(k: Any) -> None:
    index = VectorIndex.from_array(ROWS)
    for search in (lambda: index.search(ROWS[:1], k), lambda: index.search_row(1, k)):
        with pytest.raises(VectorIndexError, match="expected a whole number of at least 1"):
            search()


def test_an_index_of_an_array_is_saved_where_it_was_loaded_from(tmp_path: Path) -> None:
    path = VectorIndex.from_array(ROWS).save(tmp_path / "rows.faiss")
    index = VectorIndex.load(path)
    index.remove([3])
    assert index.save() == path
    assert len(VectorIndex.load(path)) == 399


def test_temporary_files_are_closed() -> None:
    gc.collect()  # files that other tests left open do not count
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        index = VectorIndex.from_array(ROWS, backend="ivf")
        index.search(ROWS[:1])
        del index
        gc.collect()


@pytest.mark.parametrize("backend", ["ivf", "hnsw"])
def test_exact_search_of_everything_reads_rows_in_blocks(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timmscope.index.exact._BLOCK_BYTES", 4 * 6 * 30)  # 30 rows
    largest = 0
    read = RowTable.__getitem__

    def watched(table: RowTable, places: Any) -> Any:
        nonlocal largest
        rows = read(table, places)
        largest = max(largest, len(rows))
        return rows

    index = VectorIndex.from_array(ROWS, metric="l2", backend=backend)
    monkeypatch.setattr(RowTable, "__getitem__", watched)
    found = index.search(ROWS[0], 300).ids[0]  # so many are searched exactly
    expected = np.argsort(np.linalg.norm(ROWS - ROWS[0], axis=1), kind="stable")[:300]
    assert set(found.tolist()) == set(expected.tolist())
    assert largest <= 30
