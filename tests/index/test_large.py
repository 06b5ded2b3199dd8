"""The engines for large stores return exact scores, enough rows and the recall that they record."""

from __future__ import annotations

import hashlib
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from timmscope import VectorIndex, VectorIndexError
from timmscope.index.choice import choose_backend
from timmscope.index.ivf import list_count

METRICS = ("cosine", "l2", "ip")
LARGE = ("ivf", "hnsw")
generator = np.random.default_rng(0)
CENTRES = generator.normal(size=(60, 33)).astype(np.float32)
ROWS = CENTRES[generator.integers(60, size=6000)] + generator.normal(size=(6000, 33)).astype("f4")
IDS = np.sort(generator.permutation(20_000)[:6000])
QUERIES = ROWS[:150] + generator.normal(size=(150, 33)).astype("f4") / 2


@pytest.fixture(scope="module")
def indexes() -> dict[tuple[str, str], VectorIndex]:
    return {
        (backend, metric): VectorIndex.from_array(
            ROWS, ids=IDS, metric=metric, backend=backend, recall=0.97
        )
        for backend in LARGE
        for metric in METRICS
    }


def scores_of(metric: str, query: Any, ids: Any) -> Any:
    """Return scores by the definition, in float64."""
    rows = ROWS[np.searchsorted(IDS, ids)].astype(float)
    query = query.astype(float)
    if metric == "l2":
        return np.linalg.norm(rows - query, axis=1)
    products = rows @ query
    if metric == "ip":
        return products
    return products / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)


def true_ids(metric: str, query: Any, allowed: Any, k: int) -> Any:
    scores = scores_of(metric, query, allowed)
    return allowed[np.argsort(scores if metric == "l2" else -scores, kind="stable")[:k]]


def recall(metric: str, found: Any, allowed: Any = IDS) -> float:
    k = found.ids.shape[1]
    shares = [
        np.isin(ids, true_ids(metric, query, allowed, k)).mean()
        for query, ids in zip(QUERIES, found.ids, strict=True)
    ]
    return float(np.mean(shares))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", LARGE)
def test_scores_are_exact_and_in_order_and_recall_is_what_the_record_says(
    indexes: Any, backend: str, metric: str
) -> None:
    index = indexes[backend, metric]
    found = index.search(QUERIES, 10)
    for query, ids, scores in zip(QUERIES, found.ids, found.scores, strict=True):
        np.testing.assert_allclose(scores, scores_of(metric, query, ids), rtol=1e-6, atol=1e-6)
        keys = list(zip(scores if metric == "l2" else -scores, ids, strict=True))
        assert keys == sorted(keys)
        assert len(set(ids)) == 10
    measured = index.record.facts["recall"]
    assert (measured["k"], measured["queries"], measured["wanted"]) == (10, 1000, 0.97)
    assert measured["reached"] >= 0.97
    assert recall(metric, found) > measured["reached"] - 0.02  # of 1,500 other neighbours


@pytest.mark.parametrize("backend", LARGE)
def test_answers_do_not_depend_on_the_batch_of_a_query(indexes: Any, backend: str) -> None:
    together = indexes[backend, "l2"].search(QUERIES[:40], 7)
    alone = [indexes[backend, "l2"].search(query, 7) for query in QUERIES[:40]]
    np.testing.assert_array_equal(together.ids, np.concatenate([hits.ids for hits in alone]))
    np.testing.assert_array_equal(together.scores, np.concatenate([hits.scores for hits in alone]))


@pytest.mark.parametrize("backend", LARGE)
@pytest.mark.parametrize("share", [0.0004, 0.01, 0.3, 0.9, 1.0])
def test_a_filtered_search_finds_k_neighbours_if_there_are_as_many(
    indexes: Any, backend: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise these filters would be searched exactly.
    monkeypatch.setattr("timmscope.index.reranked._EXACT_ROWS", 100)
    allowed = np.sort(np.random.default_rng(1).permutation(IDS)[: round(share * 6000)])
    mask = np.zeros(20_000, bool)
    mask[allowed] = True
    for metric in METRICS:
        by_ids = indexes[backend, metric].search(QUERIES, 10, where=allowed)
        by_mask = indexes[backend, metric].search(QUERIES, 10, where=mask)
        np.testing.assert_array_equal(by_ids.ids, by_mask.ids)
        assert by_ids.ids.shape == (150, min(10, len(allowed)))
        assert np.isin(by_ids.ids, allowed).all()
        assert recall(metric, by_ids, allowed) > 0.94


@pytest.mark.parametrize("backend", LARGE)
def test_a_filter_on_the_farthest_rows_falls_back_to_exact_search(
    indexes: Any, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timmscope.index.reranked._EXACT_ROWS", 0)
    far = np.argsort(np.linalg.norm(ROWS - QUERIES[0], axis=1))[-120:]
    allowed = np.sort(IDS[far])
    found = indexes[backend, "l2"].search(QUERIES[:1], 120, where=allowed)
    assert found.ids[0].tolist() == true_ids("l2", QUERIES[0], allowed, 120).tolist()


@pytest.mark.parametrize("backend", LARGE)
def test_all_rows_are_returned_if_k_is_larger_than_their_number(indexes: Any, backend: str) -> None:
    found = indexes[backend, "l2"].search(QUERIES[:2], 9999)
    assert found.ids.shape == (2, 6000)
    assert set(found.ids[0].tolist()) == set(IDS.tolist())


@pytest.mark.parametrize("backend", LARGE)
def test_a_loaded_index_gives_the_answers_of_the_saved_one_mapped_or_not(
    indexes: Any, backend: str, tmp_path: Path
) -> None:
    index = indexes[backend, "cosine"]
    path = index.save(tmp_path / "rows.faiss")
    expected = index.search(QUERIES, 10)
    for mmap in (True, False):
        again = VectorIndex.load(path, mmap=mmap)
        np.testing.assert_array_equal(again.search(QUERIES, 10).ids, expected.ids)
        np.testing.assert_array_equal(again.search(QUERIES, 10).scores, expected.scores)
        assert again.ids.tolist() == IDS.tolist()
    assert faiss.read_index(str(path)).ntotal == 6000  # FAISS alone reads the codes


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_rows_give_the_same_bytes_with_any_number_of_threads(
    tmp_path: Path, threads: int
) -> None:
    digests = set()
    before = faiss.omp_get_max_threads()
    try:
        for number in range(2):
            faiss.omp_set_num_threads(threads if number else 1)
            index = VectorIndex.from_array(ROWS, backend="ivf")
            path = index.save(tmp_path / f"{number}.faiss")
            record = path.with_suffix(".json").read_bytes()
            digests.add((hashlib.sha256(path.read_bytes()).hexdigest(), record))
    finally:
        faiss.omp_set_num_threads(before)
    assert len(digests) == 1


def test_an_index_can_be_built_again_from_its_settings(tmp_path: Path) -> None:
    index = VectorIndex.from_array(ROWS, metric="ip", recall=0.9, seed=3, memory=10_000_000)
    again = VectorIndex.from_array(
        ROWS, **VectorIndex.load(index.save(tmp_path / "a.faiss")).settings
    )
    again.save(tmp_path / "b.faiss")
    assert again.record == index.record
    assert (tmp_path / "a.faiss").read_bytes() == (tmp_path / "b.faiss").read_bytes()


@pytest.mark.parametrize("backend", LARGE)
@pytest.mark.parametrize("count", [1, 2, 17, 40])
def test_a_handful_of_rows_is_enough(backend: str, count: int) -> None:
    index = VectorIndex.from_array(ROWS[:count], backend=backend, metric="l2")
    found = index.search_row(0, 50, exclude_self=False)
    assert sorted(found.ids[0].tolist()) == list(range(count))
    assert (found.ids[0, 0], found.scores[0, 0]) == (0, 0)


@pytest.mark.parametrize("backend", LARGE)
def test_equal_rows_have_equal_scores(backend: str) -> None:
    index = VectorIndex.from_array(np.ones((3000, 6)), backend=backend, metric="l2")
    found = index.search(np.zeros(6), 10)
    np.testing.assert_allclose(found.scores, 6**0.5, rtol=1e-6)
    assert index.record.facts["recall"]["reached"] == 1


@pytest.mark.parametrize("backend", LARGE)
def test_removed_rows_are_not_found_until_they_are_added_again(
    backend: str, tmp_path: Path
) -> None:
    index = VectorIndex.from_array(ROWS, ids=IDS, backend=backend, metric="l2", recall=0.97)
    gone = index.search(QUERIES, 3).ids[:, 0]
    gone = np.unique(gone)
    assert index.remove(gone) == len(gone)
    assert len(index) == index.record.count == 6000 - len(gone)
    assert index.record.facts["tombstones"] == len(gone)
    left = np.setdiff1d(IDS, gone)
    index.save(tmp_path / "rows.faiss")
    for current in (index, VectorIndex.load(tmp_path / "rows.faiss")):
        found = current.search(QUERIES, 10)
        assert not np.isin(found.ids, gone).any()
        assert recall("l2", found, left) > 0.95
        assert current.search(QUERIES[:1], 9999).ids.shape == (1, len(left))
        with pytest.raises(VectorIndexError, match=f"no row {gone[0]}"):
            current.search_row(int(gone[0]))
    again = VectorIndex.load(tmp_path / "rows.faiss")
    assert again.add(ROWS[np.searchsorted(IDS, gone)], gone) == len(gone)
    found = again.search(QUERIES, 10)
    assert recall("l2", found) > 0.95
    assert found.scores[0, 0] == index.search(QUERIES, 10).scores[0, 0] or gone[0] in found.ids
    again.compact()
    assert (again.record.facts["tombstones"], len(again)) == (0, 6000)
    compacted = again.search(QUERIES, 10)
    assert recall("l2", compacted) > 0.95
    again.save(tmp_path / "rows.faiss")
    final = VectorIndex.load(tmp_path / "rows.faiss").search(QUERIES, 10)
    np.testing.assert_array_equal(final.ids, compacted.ids)


def test_tuned_parameters_are_saved_without_writing_the_rows_again(tmp_path: Path) -> None:
    index = VectorIndex.from_array(ROWS, ids=IDS, backend="ivf", metric="l2", recall=0.6)
    path = index.save(tmp_path / "rows.faiss")
    written = path.stat()
    assert index.tune(0.99) >= 0.99
    assert index.record.facts["queries_per_s"] > 0
    index.save(path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    again = VectorIndex.load(path)
    assert again.record == index.record
    np.testing.assert_array_equal(again.search(QUERIES, 10).ids, index.search(QUERIES, 10).ids)
    assert recall("l2", again.search(QUERIES, 10)) > 0.97


def test_an_unreachable_recall_is_a_warning_with_the_best_recall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("timmscope.index.reranked.WIDTHS", (1, 2))
    monkeypatch.setattr("timmscope.index.tuning.WIDTHS", (1, 2))
    with pytest.warns(UserWarning, match=r"reaches a recall of 0\.\d+ at best, not 1\.0"):
        index = VectorIndex.from_array(
            np.random.default_rng(2).normal(size=(5000, 64)),
            backend="ivf",
            memory=200_000,
            recall=1.0,
        )
    assert 0.2 < index.record.facts["recall"]["reached"] < 1


def test_the_engine_is_chosen_by_rows_width_memory_and_recall() -> None:
    def choice(count: int, dim: int, recall: float = 0.95, memory: int | None = None) -> str:
        name, reason = choose_backend(count, dim, recall=recall, memory=memory)
        assert reason.startswith(f"{name}: ")
        return name

    assert choice(1000, 512) == "flat"
    assert choice(1_000_000, 512) == "ivf"
    assert choice(1_000_000, 8) == "flat"
    assert choice(1_000_000, 512, recall=1) == "flat"
    assert choice(1_000_000, 512, recall=1, memory=1 << 30) == "ivf"
    assert choice(20_000, 512, memory=10 << 20) == "ivf"
    assert [list_count(count) for count in (1, 100, 10_000, 1_000_000)] == [1, 2, 256, 2048]
    with pytest.raises(VectorIndexError, match=r"needs \d+ bytes of memory at least"):
        choice(1_000_000, 512, memory=1 << 20)


def test_a_memory_limit_makes_codes_coarser_and_is_kept() -> None:
    facts = [
        VectorIndex.from_array(ROWS, backend="ivf", memory=memory).record.facts
        for memory in (None, 155_000)
    ]
    assert [f["type"] for f in facts] == ["IVF128,PQ17x4fs,refine", "IVF128,PQ9x4fs,refine"]
    assert facts[1]["memory_bytes"] <= 155_000 < facts[0]["memory_bytes"]


def _search(index: VectorIndex, queue: Any) -> None:
    queue.put(index.search(QUERIES, 4).ids.tolist())


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", LARGE)
def test_a_forked_process_can_search(indexes: Any, backend: str) -> None:
    index = indexes[backend, "l2"]
    expected = index.search(QUERIES, 4).ids.tolist()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_search, args=(index, queue))
    child.start()
    try:
        assert queue.get(timeout=300) == expected
    finally:
        child.kill()
        child.join()
