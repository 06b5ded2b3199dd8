"""Rows are added and removed without a new build, and impossible changes are one-line errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from timmscope import VectorIndex, VectorIndexError

ROWS = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)


@pytest.fixture
def index() -> VectorIndex:
    return VectorIndex.from_array(ROWS[:50], ids=np.arange(50) * 2, metric="l2")


def test_an_updated_index_gives_the_answers_of_one_built_from_the_same_rows(
    index: VectorIndex, tmp_path: Path
) -> None:
    index.save(tmp_path / "rows.faiss")
    for found in (index, VectorIndex.load(tmp_path / "rows.faiss")):  # the second is mapped
        assert found.add(ROWS[50:], np.arange(50, 60) * 2 + 1) == 10
        assert found.remove([0, 8, 101]) == 3
        assert found.add(ROWS[4:5] * 2, [8]) == 1
        table = {**{i * 2: ROWS[i] for i in range(50)}}
        table |= {i * 2 + 1: ROWS[i] for i in range(50, 60)}
        del table[0], table[101]
        table[8] = ROWS[4] * 2
        fresh = VectorIndex.from_array(np.stack(list(table.values())), ids=list(table), metric="l2")
        for mine, theirs in zip(found.search(ROWS, 58), fresh.search(ROWS, 58), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        info = found.info()
        assert (len(found), info["count"], info["removed"]) == (58, 58, 3)
        found.compact()
        found.save(tmp_path / "after.faiss")
        again = VectorIndex.load(tmp_path / "after.faiss")
        np.testing.assert_array_equal(again.search(ROWS, 9).ids, found.search(ROWS, 9).ids)


def test_added_rows_that_are_not_finite_are_left_out(index: VectorIndex) -> None:
    bad = ROWS[50:53].copy()
    bad[1, 3] = np.inf
    assert index.add(bad, [1, 3, 5]) == 2
    assert (index.record.non_finite, 3 in index.ids) == (1, False)


def test_a_cosine_index_scales_added_rows_too() -> None:
    index = VectorIndex.from_array([[1, 0], [0, 1]])
    index.add([[30, 40]], [7])
    hits = index.search([3, 4], 3)
    assert hits.ids.tolist() == [[7, 1, 0]]
    np.testing.assert_allclose(hits.scores, [[1, 0.8, 0.6]], rtol=1e-6)


def test_adding_and_removing_nothing_changes_nothing(index: VectorIndex) -> None:
    assert index.add(np.empty((0, 8)), np.empty(0, int)) == index.remove([]) == 0
    assert len(index) == 50


BAD: dict[str, Any] = {
    "1 of the ids are in the index of 'array' already, the first is 4": lambda index: index.add(
        ROWS[:2], [3, 4]
    ),
    "none may occur twice": lambda index: index.add(ROWS[:2], [3, 3]),
    "must not be negative": lambda index: index.add(ROWS[:1], [-1]),
    "1 ids for 2 rows": lambda index: index.add(ROWS[:2], [3]),
    "rows of 7 values cannot be added to .* 'array', whose rows have 8": lambda index: index.add(
        ROWS[:1, :7], [1]
    ),
    "2 of 3 ids are not in the index of 'array', the first is 1": lambda index: index.remove(
        [1, 2, 3]
    ),
    "may occur twice": lambda index: index.remove([2, 2]),
    "these are all 50 rows": lambda index: index.remove(index.ids),
    "belongs to no store": lambda index: index.add_missing(),
    "recall is 0: expected more than 0": lambda index: index.tune(0),
    "recall is 1.5": lambda index: VectorIndex.from_array(ROWS, recall=1.5),
    "about the images of a store": lambda index: index.search(ROWS[0], where="label == 'dog'"),
    r"a mask of 98 entries for ids up to 98": lambda index: index.search(
        ROWS[0], where=np.ones(98, bool)
    ),
    "expected a condition as text, a mask of bools, or ids": lambda index: index.search(
        ROWS[0], where=[0.5]
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_an_impossible_call_is_a_one_line_error_and_does_not_change_the_index(
    index: VectorIndex, message: str
) -> None:
    with pytest.raises(VectorIndexError, match=message) as caught:
        BAD[message](index)
    assert "\n" not in str(caught.value)
    assert index.ids.tolist() == list(range(0, 100, 2))


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
@pytest.mark.parametrize("share", [1, 7, 40, 400])
def test_a_filtered_exact_search_equals_an_index_of_the_allowed_rows(
    metric: Any, share: int
) -> None:
    generator = np.random.default_rng(share)
    rows = generator.integers(-2, 3, size=(900, 5)).astype(np.float32)  # many ties
    ids = generator.permutation(3000)[:900]
    index = VectorIndex.from_array(rows, ids=ids, metric=metric)
    some = generator.permutation(900)[:share]
    alone = VectorIndex.from_array(rows[some], ids=ids[some], metric=metric)
    found = index.search(rows[:30], 12, where=[*ids[some], 9999])
    for mine, theirs in zip(found, alone.search(rows[:30], 12), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_filter_that_allows_nothing_finds_nothing(index: VectorIndex) -> None:
    assert index.search(ROWS[:3], 5, where=[1, 3]).ids.shape == (3, 0)
    assert index.search(ROWS[:3], 5, where=np.zeros(99, bool)).scores.shape == (3, 0)


@pytest.mark.parametrize("backend", ["ivf", "hnsw"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_change_that_was_interrupted_can_be_saved_or_done_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend: str, error: type[BaseException]
) -> None:
    path = tmp_path / "rows.faiss"
    VectorIndex.from_array(ROWS[:50], backend=backend).save(path)
    undisturbed = VectorIndex.load(path)
    undisturbed.add(ROWS[50:], np.arange(50, 60))
    expected = undisturbed.search(ROWS, 3)
    index = VectorIndex.load(path)

    class Broken:
        """FAISS's index, which stops when codes are added."""

        def __init__(self, found: Any) -> None:
            self.found = found

        def __getattr__(self, name: str) -> Any:
            return getattr(self.found, name)

        def add_with_ids(self, rows: Any, ids: Any) -> None:
            self.found.add_with_ids(rows[:2], ids[:2])
            raise error

    whole = index._backend._index
    monkeypatch.setattr(index._backend, "_index", Broken(whole))
    with pytest.raises(error):
        index.add(ROWS[50:], np.arange(50, 60))
    monkeypatch.setattr(index._backend, "_index", whole)
    index.save(path)
    again = VectorIndex.load(path)
    assert len(again) == 60
    np.testing.assert_array_equal(again.search(ROWS, 3).ids, expected.ids)
    again.remove([4])
    monkeypatch.setattr(again._backend, "_index", Broken(again._backend._index))
    with pytest.raises(error):
        again.compact()
    monkeypatch.setattr(again._backend, "_index", again._backend._index.found)
    again.save(path)
    assert VectorIndex.load(path).ids.tolist() == [i for i in range(60) if i != 4]
