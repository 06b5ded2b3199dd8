"""Partitions of rows: k-means by FAISS in bounded memory, HDBSCAN by scikit-learn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from timmscope import ParameterError, task
from timmscope_representation.optional_packages import require_package
from timmscope_representation.row_space import RowSpace

Numbers = npt.NDArray[Any]

POINTS_PER_CLUSTER = 256
"""Rows per cluster that decide the centroids; FAISS's own limit."""
_HELD = 1 << 26
"""Largest number of values kept in memory rather than read twice: 256 MiB."""
_DENSITY_ROWS = 50_000
_BATCH = 4096


@dataclass(frozen=True)
class Partition:
    """A partition of rows into clusters, the largest first.

    Attributes:
        clusters: `(n,)` number of each row's cluster, from 1; 0 is noise.
        distances: `(n,)` float32, to the row's centroid in the metric's units; NaN for noise.
        centroids: `(k, d)` float64, of length 1 for `cosine`.
    """

    clusters: Numbers
    distances: Numbers
    centroids: Numbers


def kmeans(space: RowSpace, k: int, *, iterations: int, restarts: int, seed: int) -> Partition:
    """k-means (Lloyd) by FAISS; spherical for `cosine` (Dhillon & Modha, 2001).

    At most 256 rows per cluster, drawn by the seed, decide the centroids; then every row goes to
    the nearest one. Empty clusters are left out.

    Args:
        space: at least `k` rows, and their metric.
        k: number of clusters.
        iterations: number of iterations of Lloyd's algorithm.
        restarts: number of runs; the one with the lowest objective is kept.
        seed: seed of the sample and of the initial centroids.
    """
    import faiss

    rows = space.rows
    drawn = np.zeros(len(rows), bool)
    drawn[np.searchsorted(rows.ids, rows.sample(k * POINTS_PER_CLUSTER, seed))] = True
    points = np.empty((int(drawn.sum()), rows.dim), np.float32)
    held: list[tuple[Numbers, Numbers]] | None = [] if len(rows) * rows.dim <= _HELD else None
    cosine = space.metric == "cosine"
    origin = np.zeros(rows.dim) if cosine else space.middle()
    at = filled = 0
    for ids, values in space.batches("reading rows", origin):
        some = values[drawn[at : at + len(values)]]
        points[filled : filled + len(some)] = some
        at, filled = at + len(values), filled + len(some)
        if held is not None:
            held.append((ids, values))
    settings = faiss.ClusteringParameters()
    settings.niter, settings.seed, settings.spherical = iterations, seed & 0x7FFFFFFF, cosine
    settings.nredo, settings.min_points_per_centroid = restarts, 1
    settings.max_points_per_centroid = POINTS_PER_CLUSTER
    clustering = faiss.Clustering(rows.dim, k, settings)
    index = faiss.IndexFlatIP(rows.dim) if cosine else faiss.IndexFlatL2(rows.dim)
    with task("k-means"):
        clustering.train(points, index)
    del points
    centroids = faiss.vector_to_array(clustering.centroids).reshape(k, rows.dim)
    codes = np.empty(len(rows), np.int64)
    distances = np.empty(len(rows), np.float32)
    at = 0
    batches: Iterable[tuple[Numbers, Numbers]] = held or space.batches("finding clusters", origin)
    for _, values in batches:
        part = slice(at, at + len(values))
        codes[part] = index.search(values, 1)[1][:, 0]
        distances[part] = _to_centroid(space, values, centroids[codes[part]])
        at += len(values)
    return _ordered(codes, distances, centroids + origin)


def hdbscan(space: RowSpace, fewest: int) -> Partition:
    """HDBSCAN (Campello, Moulavi & Sander, PAKDD 2013) by scikit-learn, with all rows in memory.

    Centroids are the means of the clusters, for `cosine` scaled to length 1.

    Args:
        space: the rows and their metric; `cosine` clusters rows of length 1 by Euclidean distance.
        fewest: smallest number of rows in a cluster.

    Raises:
        PluginError: scikit-learn is not installed.
        ParameterError: there are too many rows.
    """
    require_package("sklearn", "scikit-learn", "method 'hdbscan'")
    from sklearn.cluster import HDBSCAN

    rows = space.rows
    if len(rows) > _DENSITY_ROWS:
        raise ParameterError(
            f"hdbscan compares all pairs, so it takes at most {_DENSITY_ROWS} images, and "
            f"{rows.title} has {len(rows)}: choose some with where=, or use method='kmeans'",
            parameter="method",
        )
    origin = np.zeros(rows.dim) if space.metric == "cosine" else space.middle()
    values = np.concatenate([values for _, values in space.batches("reading rows", origin)])
    with task("hdbscan"):
        codes = HDBSCAN(min_cluster_size=fewest, n_jobs=-1, copy=True).fit_predict(values)
    codes = codes.astype(np.int64)
    centroids = np.stack(
        [values[codes == code].mean(0, dtype=np.float64) for code in range(codes.max() + 1)]
        or [np.empty(rows.dim)]
    )[: codes.max() + 1]
    if space.metric == "cosine":
        centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-30)
    distances = np.full(len(rows), np.nan, np.float32)
    for start in range(0, len(rows), _BATCH):
        some = start + np.flatnonzero(codes[start : start + _BATCH] >= 0)
        distances[some] = _to_centroid(space, values[some], centroids[codes[some]])
    return _ordered(codes, distances, centroids + origin)


def _to_centroid(space: RowSpace, values: Numbers, centroids: Numbers) -> Numbers:
    """Distance of each row to its centroid; by differences, because products lose small ones."""
    gaps = values - centroids
    squares = np.einsum("ij,ij->i", gaps, gaps)
    return np.asarray(squares / 2 if space.metric == "cosine" else np.sqrt(squares))


def _ordered(codes: Numbers, distances: Numbers, centroids: Numbers) -> Partition:
    """The partition without empty clusters, the largest first; ties in order of their first row."""
    sizes = np.bincount(codes[codes >= 0], minlength=len(centroids))
    first = np.full(len(centroids), len(codes))
    some = np.flatnonzero(codes >= 0)
    np.minimum.at(first, codes[some], some)
    order = np.lexsort((first, -sizes))
    order = order[sizes[order] > 0]
    rank = np.zeros(len(centroids) + 1, np.int64)  # the last entry is for noise, code -1
    rank[order] = np.arange(1, len(order) + 1)
    return Partition(rank[codes], distances, centroids[order])
