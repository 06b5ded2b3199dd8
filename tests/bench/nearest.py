"""Neighbour search beside hnswlib, usearch and plain FAISS, at equal recall.

The rows are a mixture: 100 to each centre, centres normal with variance 1 in every direction, noise
normal with variance 6.25, so that clusters overlap: reading the nearest list of IVF1024 finds about
half of the 10 nearest rows. `TIMMSCOPE_BENCH_ROWS` says how many there are (100,000).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from tests.bench.pairs import Pair, compare

from timmscope import VectorIndex

ROWS = int(os.environ.get("TIMMSCOPE_BENCH_ROWS", "100000"))
DIM, QUERIES, K = 512, 1000, 10
NOISE = 2.5
RECALL = 0.95
LINKS, EFFORT_BUILDING = 16, 100
EFFORTS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Engine(NamedTuple):
    """A peer: how it searches with an effort, and how long it took to build."""

    name: str
    search: Callable[[int], Any]
    efforts: tuple[int, ...]
    seconds: float


def mixture(rows: int, seed: int = 0) -> Any:
    """Overlapping clusters `(rows, 512)`, made a part at a time."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((max(1, rows // 100), DIM), dtype=np.float32)
    table = np.empty((rows, DIM), np.float32)
    for start in range(0, rows, 50_000):
        part = table[start : start + 50_000]
        part[:] = generator.standard_normal(part.shape, dtype=np.float32) * NOISE
        part += centres[generator.integers(len(centres), size=len(part))]
    return table


def nearest() -> Iterator[Pair]:
    """1,000 queries at once, each engine at the least effort that finds 95 % of the neighbours."""
    table = mixture(ROWS + QUERIES)
    rows, queries = table[:ROWS], table[ROWS:]
    truth = VectorIndex.from_array(rows, metric="l2", backend="flat").search(queries, K).ids
    began = perf_counter()
    index = VectorIndex.from_array(rows, metric="l2", recall=RECALL, backend="ivf")
    seconds = perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        index = VectorIndex.load(index.save(Path(folder) / "rows.faiss"))
        index.tune(RECALL)
        share = _recall(index.search(queries, K).ids, truth)
        ours = f"{index.record.facts['type']}, recall {share:.3f}, built in {seconds:.0f} s"
        for make in (_flat, _scalar_lists, _faiss_graph, _hnswlib, _usearch):
            try:
                peer = make(rows, queries)
            except ImportError as error:
                print(f"without {error.name}: not installed")
                continue
            effort, reached = _effort(peer, truth)
            theirs = f"{peer.name} {effort}, recall {reached:.3f}, built in {peer.seconds:.0f} s"
            yield compare(
                f"search {ROWS} x {DIM}",
                (ours, lambda: index.search(queries, K)),
                (theirs, lambda peer=peer, effort=effort: peer.search(effort)),
                runs=5,
            )
            del peer


def _effort(peer: Engine, truth: Any) -> tuple[int, float]:
    """The least effort that reaches the recall, or the largest."""
    for effort in peer.efforts:
        reached = _recall(peer.search(effort), truth)
        if reached >= RECALL:
            break
    return effort, reached


def _recall(found: Any, truth: Any) -> float:
    pairs = zip(found, truth, strict=True)
    return float(np.mean([len(set(a.tolist()) & set(b.tolist())) / K for a, b in pairs]))


def _flat(rows: Any, queries: Any) -> Engine:
    import faiss

    index = faiss.IndexFlatL2(DIM)
    index.add(rows)
    return Engine("faiss Flat", lambda effort: index.search(queries, K)[1], (0,), 0)


def _scalar_lists(rows: Any, queries: Any) -> Engine:
    import faiss

    began = perf_counter()
    index = faiss.index_factory(DIM, f"IVF{1024 if len(rows) < 500_000 else 2048},SQ8")
    index.train(rows[: 64 * index.nlist])
    index.add(rows)

    def search(effort: int) -> Any:
        return index.search(queries, K, params=faiss.SearchParametersIVF(nprobe=effort))[1]

    efforts = tuple(effort for effort in EFFORTS if effort <= index.nlist)
    return Engine("faiss IVF,SQ8 nprobe", search, efforts, perf_counter() - began)


def _faiss_graph(rows: Any, queries: Any) -> Engine:
    import faiss

    began = perf_counter()
    index = faiss.IndexHNSWSQ(DIM, faiss.ScalarQuantizer.QT_8bit, LINKS)
    index.hnsw.efConstruction = EFFORT_BUILDING
    index.train(rows[:65536])
    index.add(rows)

    def search(effort: int) -> Any:
        return index.search(queries, K, params=faiss.SearchParametersHNSW(efSearch=effort))[1]

    return Engine("faiss HNSW,SQ8 ef", search, EFFORTS, perf_counter() - began)


def _hnswlib(rows: Any, queries: Any) -> Engine:
    import hnswlib

    began = perf_counter()
    index = hnswlib.Index("l2", DIM)
    index.init_index(len(rows), ef_construction=EFFORT_BUILDING, M=LINKS, random_seed=0)
    index.add_items(rows)

    def search(effort: int) -> Any:
        index.set_ef(effort)
        return index.knn_query(queries, K)[0].astype(np.int64)

    return Engine("hnswlib ef", search, EFFORTS, perf_counter() - began)


def _usearch(rows: Any, queries: Any) -> Engine:
    from usearch.index import Index

    began = perf_counter()
    index = Index(
        ndim=DIM,
        metric="l2sq",
        dtype="f16",
        connectivity=LINKS,
        expansion_add=EFFORT_BUILDING,
    )
    index.add(np.arange(len(rows)), rows)

    def search(effort: int) -> Any:
        index.expansion_search = effort
        return index.search(queries, K).keys.astype(np.int64)

    return Engine("usearch f16 ef", search, EFFORTS, perf_counter() - began)
