"""Puts the rows of images into groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

Rows = npt.NDArray[np.float64]
_RESTARTS = 8


@dataclass(frozen=True)
class Facets:
    """Groups of images, the largest first.

    Attributes:
        starts: the mean image of each group, `(C, H, W)`.
        directions: `(K, D)` centre of each group minus the middle of all.
        middle: `(D,)` mean of all rows.
        sizes: number of images of each group.
    """

    starts: list[Tensor]
    directions: Rows
    middle: Rows
    sizes: list[int]


def find_facets(
    rows: Rows,
    mean_image: Callable[[npt.NDArray[np.int64]], Tensor],
    count: int,
    components: int,
    nearest: int,
) -> Facets:
    """Group rows by k-means of their principal components.

    Args:
        rows: `(N, D)`.
        mean_image: gives the mean of the images of some rows.
        count: number of groups.
        components: number of principal components.
        nearest: number of images nearest to a group's centre whose mean it starts from.
    """
    import faiss

    middle = rows.mean(0)
    _, _, axes = np.linalg.svd(rows - middle, full_matrices=False)
    reduced = np.ascontiguousarray((rows - middle) @ axes[:components].T, np.float32)
    kmeans = faiss.Kmeans(
        reduced.shape[1], count, niter=50, nredo=_RESTARTS, seed=0, min_points_per_centroid=1
    )
    kmeans.train(reduced)
    centroids = np.asarray(kmeans.centroids)
    distances = ((reduced[:, None] - centroids[None]) ** 2).sum(2)
    groups = distances.argmin(1)
    sizes = np.bincount(groups, minlength=count)
    starts, directions = [], []
    order = np.argsort(-sizes, kind="stable")
    for group in order:
        own = np.flatnonzero(groups == group)
        own = own if len(own) else distances[:, group].argsort()[:1]
        first = own[distances[own, group].argsort(kind="stable")][:nearest]
        starts.append(mean_image(first.astype(np.int64)))
        directions.append(rows[own].mean(0) - middle)
    return Facets(starts, np.stack(directions), middle, sizes[order].tolist())
