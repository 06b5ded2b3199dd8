"""Benchmarks of clusters and near-duplicates of 100,000 rows of 512 numbers in a store.

Rows are those of `row_stores.mixture`; for near-duplicates 5 % of them become near-copies of
others. k-means is compared with FAISS on the loaded matrix with the same settings: 256 centroids
from 256 rows each, 25 iterations, then the nearest centroid of every row.

Near-duplicates are compared with brute force over each pair once: float32 products of blocks of the
loaded matrix, and a threshold, without a second measurement and without groups. It takes half a
minute, so there is one run after a warm-up.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tests.bench.pairs import Pair, compare
from tests.bench.row_stores import mixture, rows_store

from timmscope import technique

ROWS, DIM, CENTROIDS, RESTARTS = 100_000, 512, 256, 1
COPIES, NOISE = ROWS // 20, 0.02
DISTANCES = {"cosine": 0.05, "l2": 1.0}
BLOCK = 2048


def clusters() -> Iterator[Pair]:
    """Time k-means over a store, and FAISS on the loaded matrix, for both metrics."""
    import faiss

    rows = mixture(ROWS, DIM)
    with tempfile.TemporaryDirectory() as folder:
        layer = rows_store(Path(folder) / "rows.scope", rows)
        for metric in ("l2", "cosine"):
            find: Any = technique("clusters")(k=CENTROIDS, metric=metric, restarts=RESTARTS)

            def theirs(cosine: bool = metric == "cosine") -> None:
                matrix = rows / np.linalg.norm(rows, axis=1, keepdims=True) if cosine else rows
                kmeans = faiss.Kmeans(
                    DIM, CENTROIDS, niter=25, nredo=RESTARTS, spherical=cosine, seed=0
                )
                kmeans.train(matrix)
                kmeans.index.search(matrix, 1)

            yield compare(
                f"k-means {ROWS} x {DIM}, {metric}",
                ("clusters of a store", lambda find=find: find(layer)),
                (f"FAISS, k = {CENTROIDS}", theirs),
                runs=3,
            )


def near_duplicates() -> Iterator[Pair]:
    """Time groups within a distance, and all products, each pair once, for both metrics."""
    rows = mixture(ROWS, DIM)
    generator = np.random.default_rng(1)
    copied, onto = generator.permutation(ROWS)[: 2 * COPIES].reshape(2, -1)
    rows[onto] = rows[copied] + NOISE * generator.standard_normal((COPIES, DIM), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        layer = rows_store(Path(folder) / "rows.scope", rows)
        for metric, distance in DISTANCES.items():
            find: Any = technique("near-duplicates")(metric=metric, distance=distance)
            found = find(layer)
            assert len(found.ids) >= 2 * COPIES, "copies are missing"
            name = f"near-duplicates {ROWS} x {DIM}, {metric} {distance:g}"
            yield compare(
                name,
                (f"{int(found.groups.max())} groups in a store", lambda find=find: find(layer)),
                ("all products, each pair once", lambda m=metric, d=distance: _brute(rows, m, d)),
                runs=1,
            )


def _brute(rows: Any, metric: str, distance: float) -> int:
    """Return the number of pairs within a distance, by full-length products in blocks."""
    if metric == "cosine":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    squares, ones = np.einsum("ij,ij->i", rows, rows)[:, None] / -2, np.ones((len(rows), 1))
    # Each product is minus half a squared distance.
    left = np.hstack([rows, squares, ones]).astype(np.float32)
    right = np.hstack([rows, ones, squares]).astype(np.float32)
    limit = -distance if metric == "cosine" else -(distance**2) / 2
    buffer = np.empty((BLOCK, BLOCK), np.float32)
    count = 0
    for start in range(0, len(rows), BLOCK):
        block = left[start : start + BLOCK]
        for other in range(start, len(rows), BLOCK):
            against = right[other : other + BLOCK]
            out = buffer[: len(block), : len(against)]
            products = np.matmul(block, against.T, out=out)
            if products.max() >= limit:
                count += int(np.count_nonzero(products >= limit))
    return count
