"""Benchmark of neighbour search against hnswlib, usearch and plain FAISS, at equal recall.

Rows are a mixture with 100 rows per centre; centres are normal with variance 1 in every direction.
Two sorts of rows are measured: in `clear` rows the noise has standard deviation 0.5, so clusters
are well separated; in `hard` rows it is 2.5, and they overlap so much that half of all lists have
to be read.

Graphs of a million rows take a quarter of an hour and more. If `TIMMSCOPE_BENCH_CACHE` names a
folder, rows, true neighbours and engines are kept there, unfinished engines every two minutes, so
that a stopped run resumes, and a run on a quiet machine only searches. `TIMMSCOPE_BENCH_ROWS` is
the number of rows (100,000), `TIMMSCOPE_BENCH_SORTS` lists the sorts (`clear,hard`), and
`TIMMSCOPE_BENCH_PEERS` the other engines (all that are installed).
"""

from __future__ import annotations

import json
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from tests.bench.pairs import Pair, compare, seconds_of

from timmscope import VectorIndex

ROWS = int(os.environ.get("TIMMSCOPE_BENCH_ROWS", "100000"))
DIM, QUERIES, K = 512, 1000, 10
NOISE = {"clear": 0.5, "hard": 2.5}
RECALL = 0.95
LINKS, BUILD_EFFORT = 16, 100
BLOCK = 50_000
EFFORTS = (1, 2, 4, 8, 16, 32, 64, 128, 181, 256, 362, 512, 724, 1024, 1448, 2048, 2896, 4096)


class Peer(ABC):
    """Another engine, which is empty when it is created."""

    name: str
    efforts = EFFORTS

    def train(self, rows: Any) -> None:  # noqa: B027 -- graphs need no training
        """Train the engine on some rows."""

    @abstractmethod
    def add(self, rows: Any, first: int) -> None:
        """Append rows, which get the numbers from `first` on."""

    @abstractmethod
    def search(self, queries: Any, effort: int) -> Any:
        """Return the numbers `(Q, K)` of the nearest rows."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the engine to a file."""

    @abstractmethod
    def load(self, path: Path) -> None:
        """Read the engine from a file."""


class _Faiss(Peer):
    index: Any

    def train(self, rows: Any) -> None:
        self.index.train(rows)

    def add(self, rows: Any, first: int) -> None:
        self.index.add(rows)

    def search(self, queries: Any, effort: int) -> Any:
        return self.index.search(queries, K, params=self.settings(effort))[1]

    def settings(self, effort: int) -> Any:
        return None

    def save(self, path: Path) -> None:
        import faiss

        faiss.write_index(self.index, str(path))

    def load(self, path: Path) -> None:
        import faiss

        self.index = faiss.read_index(str(path))


class FaissFlat(_Faiss):
    name, efforts = "faiss-flat", (0,)

    def __init__(self) -> None:
        import faiss

        self.index = faiss.IndexFlatL2(DIM)


class FaissLists(_Faiss):
    name = "faiss-ivf-sq8"
    codes = "SQ8"

    def __init__(self) -> None:
        import faiss

        lists = 1024 if ROWS < 500_000 else 2048
        self.efforts = tuple(effort for effort in EFFORTS if effort <= lists)
        self.index = faiss.index_factory(DIM, f"IVF{lists},{self.codes}")

    def settings(self, effort: int) -> Any:
        import faiss

        return faiss.SearchParametersIVF(nprobe=effort)


class FaissCodes(FaissLists):
    name = "faiss-ivf-pq4fs-refine"
    codes = "PQ256x4fs,RFlat"

    def settings(self, effort: int) -> Any:
        import faiss

        return faiss.IndexRefineSearchParameters(
            k_factor=33, base_index_params=super().settings(effort)
        )


class FaissGraph(_Faiss):
    name = "faiss-hnsw-sq8"

    def __init__(self) -> None:
        import faiss

        self.index = faiss.IndexHNSWSQ(DIM, faiss.ScalarQuantizer.QT_8bit, LINKS)
        self.index.hnsw.efConstruction = BUILD_EFFORT

    def settings(self, effort: int) -> Any:
        import faiss

        return faiss.SearchParametersHNSW(efSearch=effort)


class Hnswlib(Peer):
    name = "hnswlib"

    def __init__(self) -> None:
        import hnswlib

        self.index = hnswlib.Index("l2", DIM)
        self.index.init_index(ROWS, ef_construction=BUILD_EFFORT, M=LINKS, random_seed=0)

    def add(self, rows: Any, first: int) -> None:
        self.index.add_items(rows, np.arange(first, first + len(rows)))

    def search(self, queries: Any, effort: int) -> Any:
        self.index.set_ef(max(effort, K))
        return self.index.knn_query(queries, K)[0].astype(np.int64)

    def save(self, path: Path) -> None:
        self.index.save_index(str(path))

    def load(self, path: Path) -> None:
        import hnswlib

        self.index = hnswlib.Index("l2", DIM)
        self.index.load_index(str(path), max_elements=ROWS)


class Usearch(Peer):
    name = "usearch"

    def __init__(self) -> None:
        from usearch.index import Index

        self.index = Index(
            ndim=DIM,
            metric="l2sq",
            dtype="f16",
            connectivity=LINKS,
            expansion_add=BUILD_EFFORT,
        )

    def add(self, rows: Any, first: int) -> None:
        self.index.add(np.arange(first, first + len(rows)), rows)

    def search(self, queries: Any, effort: int) -> Any:
        self.index.expansion_search = max(effort, K)
        return self.index.search(queries, K).keys.astype(np.int64)

    def save(self, path: Path) -> None:
        self.index.save(str(path))

    def load(self, path: Path) -> None:
        self.index.load(str(path))


PEERS = (FaissFlat, FaissLists, FaissCodes, FaissGraph, Hnswlib, Usearch)


def nearest() -> Iterator[Pair]:
    """Time 1,000 queries at once, with the least effort that finds 95 % of the neighbours."""
    sorts = os.environ.get("TIMMSCOPE_BENCH_SORTS", "clear,hard").split(",")
    peers = os.environ.get("TIMMSCOPE_BENCH_PEERS", ",".join(peer.name for peer in PEERS))
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(os.environ.get("TIMMSCOPE_BENCH_CACHE", folder))
        for sort in sorts:
            yield from _measured(sort, peers.split(","), cache)


def _measured(sort: str, peers: list[str], cache: Path) -> Iterator[Pair]:
    base = cache / f"{sort}-{ROWS}x{DIM}"
    table = _table(base, NOISE[sort])
    rows, queries = table[:ROWS], np.array(table[ROWS:])
    truth = _truth(base, rows, queries)
    index, seconds = _ours(base, rows)
    share = _recall(index.search(queries, K).ids, truth)
    ours = f"{index.record.facts['type']}, recall {share:.3f}, built in {seconds:.0f} s"
    for kind in PEERS:
        if kind.name not in peers:
            continue
        try:
            peer = kind()
        except ImportError as error:
            print(f"{error.name} is not installed, so it is left out")
            continue
        seconds = _built(base, peer, rows)
        effort, reached = _effort(peer, queries, truth)
        theirs = f"{peer.name} {effort}, recall {reached:.3f}, built in {seconds:.0f} s"
        yield compare(
            f"search {sort} {ROWS} x {DIM}",
            (ours, lambda: index.search(queries, K)),
            (theirs, lambda peer=peer, effort=effort: peer.search(queries, effort)),
            runs=5,
        )
        del peer


def _table(base: Path, noise: float) -> Any:
    """Return rows and queries `(ROWS + QUERIES, 512)`, mapped from a file."""
    path = base.with_name(f"{base.name}.npy")
    if not path.exists():
        generator = np.random.default_rng(0)
        centres = generator.standard_normal((max(1, ROWS // 100), DIM), dtype=np.float32)
        draft = path.with_suffix(".tmp")
        table = np.lib.format.open_memmap(draft, "w+", np.float32, (ROWS + QUERIES, DIM))
        for start in range(0, len(table), BLOCK):
            part = table[start : start + BLOCK]
            part[:] = centres[generator.integers(len(centres), size=len(part))]
            part += noise * generator.standard_normal(part.shape, dtype=np.float32)
        table.flush()
        draft.replace(path)
    return np.load(path, mmap_mode="r")


def _truth(base: Path, rows: Any, queries: Any) -> Any:
    path = base.with_name(f"{base.name}-truth.npy")
    if not path.exists():
        found = VectorIndex.from_array(rows, metric="l2", backend="flat").search(queries, K)
        np.save(path, found.ids)
    return np.load(path)


def _ours(base: Path, rows: Any) -> tuple[VectorIndex, float]:
    """Return our index, loaded from a file, and the seconds of its build."""
    path = base.with_name(f"{base.name}-timmscope.faiss")
    note = path.with_suffix(".seconds")
    if not note.exists():
        began = perf_counter()
        index = VectorIndex.from_array(rows, metric="l2", recall=RECALL, backend="ivf")
        seconds = perf_counter() - began
        index.save(path)
        note.write_text(str(seconds))
    return VectorIndex.load(path), float(note.read_text())


def _built(base: Path, peer: Peer, rows: Any) -> float:
    """Fill a peer, resuming an earlier run, and return the seconds that all of it took."""
    path = base.with_name(f"{base.name}-{peer.name}")
    note = path.with_name(f"{path.name}.json")
    state = json.loads(note.read_text()) if note.exists() else {"rows": 0, "seconds": 0.0}
    seconds = float(state["seconds"])
    saved = seconds
    if state["rows"]:
        peer.load(path)
    else:
        seconds += seconds_of(lambda: peer.train(np.array(rows[: 1 << 17])))
    for start in range(state["rows"], len(rows), BLOCK):
        part = np.array(rows[start : start + BLOCK])
        seconds += seconds_of(lambda part=part, start=start: peer.add(part, start))
        if seconds > saved + 120 or start + len(part) == len(rows):
            draft = path.with_name(f"{path.name}.tmp")
            peer.save(draft)
            draft.replace(path)
            note.write_text(json.dumps({"rows": start + len(part), "seconds": seconds}))
            saved = seconds
    return seconds


def _effort(peer: Peer, queries: Any, truth: Any) -> tuple[int, float]:
    """Return the least effort that reaches the recall, or the largest effort, and its recall."""
    low, high = 0, len(peer.efforts) - 1
    while low < high:
        middle = (low + high) // 2
        if _recall(peer.search(queries[:200], peer.efforts[middle]), truth[:200]) >= RECALL:
            high = middle
        else:
            low = middle + 1
    for effort in peer.efforts[max(low - 1, 0) :]:
        reached = _recall(peer.search(queries, effort), truth)
        if reached >= RECALL:
            break
    return effort, reached


def _recall(found: Any, truth: Any) -> float:
    pairs = zip(found, truth, strict=True)
    return float(np.mean([len(set(a.tolist()) & set(b.tolist())) / K for a, b in pairs]))
