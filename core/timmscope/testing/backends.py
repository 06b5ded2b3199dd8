"""Checks of index backends: search results, added and removed rows, and saved files."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from timmscope.index.backend import Backend, BuildHints, Ids, RecallBenchmark, Rows, Space
from timmscope.index.own_files import beside
from timmscope.testing.conformance import Case, check

COUNT, DIM, QUERIES, K = 600, 16, 40, 10
RECALL = 0.9
"""Required of an engine that is not exact, after tuning."""
SPACES: tuple[Space, ...] = ("l2", "ip")


@check("index backend")
def finds_what_brute_force_finds(case: Case) -> None:
    """An exact engine finds all true neighbours, others nine of ten; all values are correct."""
    for space in SPACES:
        engine, rows, ids = _built(case, space)
        queries = _rows(QUERIES, seed=1)
        _judge(engine, rows, ids, queries, space)


@check("index backend")
def finds_only_allowed_rows(case: Case) -> None:
    """A filtered search returns only allowed rows, even if they are few or far away."""
    for space in SPACES:
        engine, rows, ids = _built(case, space)
        queries = _rows(5, seed=1)
        for allowed in (ids[::3], ids[-K:], ids[7:8]):
            allowed = np.sort(allowed)
            k = min(K, len(allowed))
            values, found = engine.search(queries, k, allowed)
            assert found.shape == (5, k)
            assert np.isin(found, allowed).all(), "it found rows that were not allowed"
            if k == len(allowed):
                assert all(set(row) == set(allowed.tolist()) for row in found.tolist())
            _values_are_true(values, found, rows, ids, queries, space)


@check("index backend")
def added_rows_are_found(case: Case) -> None:
    """A row added after the build is its own nearest neighbour."""
    engine, _, ids = _built(case, "l2")
    more = _rows(30, seed=2)
    engine.add(more, np.arange(30) + 10_000)
    assert len(engine) == len(ids) + 30
    values, found = engine.search(more, 1)
    assert (found[:, 0] == np.arange(30) + 10_000).mean() >= RECALL
    assert float(values[found[:, 0] >= 10_000].max()) < 0.5, "its own distance is not nearly 0"


@check("index backend")
def removed_rows_are_gone(case: Case) -> None:
    """Removed rows are not found or listed, before and after `compact`; ids can be reused."""
    engine, rows, ids = _built(case, "l2")
    gone, stay = ids[::2], ids[1::2]
    engine.remove(gone)
    for _ in range(2):
        assert len(engine) == len(stay)
        assert set(engine.ids.tolist()) == set(stay.tolist())
        _, found = engine.search(rows[:20], K)
        assert np.isin(found, stay).all(), "it found rows that were removed"
        engine.compact()
    engine.add(rows[::2], gone)
    assert len(engine) == len(ids)
    _judge(engine, rows, ids, rows[:20], "l2")


@check("index backend")
def rows_are_returned_as_added(case: Case) -> None:
    """`rows` returns added rows in any order, and raises `KeyError` for an unknown id."""
    engine, rows, ids = _built(case, "l2")
    wanted = ids[[5, 3, 599]]
    np.testing.assert_allclose(engine.rows(wanted), rows[[5, 3, 599]], rtol=2e-2, atol=2e-2)
    refused = _error_of(lambda: engine.rows(np.array([987_654])))
    assert isinstance(refused, KeyError), f"an unknown id gives {refused!r}"


@check("index backend")
def a_saved_index_loads_unchanged(case: Case) -> None:
    """A renamed index finds the same and can be changed; a damaged file raises an error."""
    engine, _, ids = _built(case, "ip")
    engine.remove(ids[:7])
    draft, path = case.folder / ".index.bin.tmp", case.folder / "index.bin"
    engine.save(draft)
    for file in (draft, *beside(draft)):
        file.rename(path.with_name(path.name + file.name.removeprefix(draft.name)))
    queries = _rows(20, seed=3)
    values, found = engine.search(queries, K)
    for mmap in (False, True):
        again = type(engine).load(path, DIM, "ip", engine.facts(), mmap=mmap)
        assert len(again) == len(engine)
        seen, where = again.search(queries, K)
        np.testing.assert_array_equal(where, found)
        np.testing.assert_allclose(seen, values, rtol=1e-5, atol=1e-5)
    again = type(engine).load(path, DIM, "ip", engine.facts(), mmap=False)
    again.remove(ids[7:9])
    more = 9 * _rows(1, seed=6)
    again.add(more, np.array([10_000]))
    assert again.search(more, 1)[1].tolist() == [[10_000]], "a row added after loading is not found"
    assert not np.isin(again.search(queries, K)[1], ids[:9]).any(), (
        "it found rows that were removed"
    )
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused = _error_of(lambda: type(engine).load(path, DIM, "ip", engine.facts(), mmap=False))
    assert refused, "half of a file was loaded without an error"


@check("index backend")
def equal_scores_are_ordered_by_id(case: Case) -> None:
    """Rows with equal scores are ordered by id, so that results are deterministic."""
    rows = np.repeat(_rows(1, seed=4), 12, axis=0)
    ids = np.random.default_rng(0).permutation(12).astype(np.int64)
    engine = _engine(case, "l2", 12)
    engine.add(rows, ids)
    engine.finish(np.empty(0, np.int64))
    _, found = engine.search(rows[:1], 12)
    assert found[0].tolist() == list(range(12))


def _error_of(work: Callable[[], object]) -> Exception | None:
    """Return the exception that a call raises, or None."""
    try:
        work()
    except Exception as error:
        return error
    return None


def _engine(case: Case, space: Space, count: int) -> Backend:
    kind = case.entry.load()
    made: Backend = kind(DIM, space, BuildHints(count=count, scratch=case.folder))
    return made


def _built(case: Case, space: Space) -> tuple[Backend, Rows, Ids]:
    engine, rows = _engine(case, space, COUNT), _rows(COUNT, seed=0)
    ids = np.random.default_rng(5).permutation(3 * COUNT)[:COUNT].astype(np.int64)
    for start in range(0, COUNT, 250):
        engine.add(rows[start : start + 250], ids[start : start + 250])
    held_out = np.sort(ids[:QUERIES])
    engine.finish(held_out)
    engine.tune(_benchmark(rows, ids, space), RECALL, timed=False)
    return engine, rows, ids


def _rows(count: int, seed: int) -> Rows:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, DIM)).astype(np.float32)


def _scores(queries: Rows, rows: Rows, space: Space) -> np.ndarray:
    a, b = queries.astype(np.float64), rows.astype(np.float64)
    if space == "ip":
        return np.asarray(a @ b.T)
    return np.asarray(np.sqrt(((a[:, None] - b[None]) ** 2).sum(2)))


def _benchmark(rows: Rows, ids: Ids, space: Space) -> RecallBenchmark:
    scores = _scores(rows[:QUERIES], rows, space)
    scores[np.arange(QUERIES), np.arange(QUERIES)] = -np.inf if space == "ip" else np.inf
    ordered = np.sort(scores, axis=1)
    worst = ordered[:, -K] if space == "ip" else ordered[:, K - 1]
    return RecallBenchmark(rows[:QUERIES], ids[:QUERIES], worst.astype(np.float32), K, space)


def _judge(engine: Backend, rows: Rows, ids: Ids, queries: Rows, space: Space) -> None:
    asked = queries.copy()
    values, found = engine.search(queries, K)
    assert np.array_equal(queries, asked), "it wrote into the queries"
    assert values.shape == found.shape == (len(queries), K)
    kinds = str(values.dtype), str(found.dtype)
    assert kinds == ("float32", "int64"), f"values and ids are {' and '.join(kinds)}"
    assert all(len(set(row)) == K for row in found.tolist()), "it found a row twice"
    steps = np.diff(values, axis=1)
    assert (steps <= 1e-5 if space == "ip" else steps >= -1e-5).all(), "not best first"
    _values_are_true(values, found, rows, ids, queries, space)
    scores = _scores(queries, rows, space)
    order = np.argsort(-scores if space == "ip" else scores, axis=1)[:, :K]
    truth = ids[order]
    hits = [len(set(a) & set(b)) for a, b in zip(truth.tolist(), found.tolist(), strict=True)]
    wanted = 1.0 if engine.facts().get("exact") else RECALL
    share = sum(hits) / (K * len(queries))
    assert share >= wanted, f"it found {share:.3f} of the true neighbours, expected {wanted}"


def _values_are_true(
    values: Rows, found: Ids, rows: Rows, ids: Ids, queries: Rows, space: Space
) -> None:
    place = {int(number): row for row, number in enumerate(ids)}
    at = np.array([[place[number] for number in row] for row in found.tolist()])
    scores = np.take_along_axis(_scores(queries, rows, space), at, axis=1)
    np.testing.assert_allclose(values, scores, rtol=2e-2, atol=2e-2)
