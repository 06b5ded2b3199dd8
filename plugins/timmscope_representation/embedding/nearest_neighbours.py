"""Nearest neighbours by pixels and by features: the difference shows what a layer has learned."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from timmscope import (
    ParameterError,
    Result,
    Rows,
    Sheet,
    StorePictures,
    StoreTechnique,
    VectorIndex,
    task,
)
from timmscope.drawing import short_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = npt.NDArray[Any]

_THUMBNAIL_PX = 128
_QUERIES_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Neighbours(Result):
    """Nearest images of queries, by pixels and by features.

    Attributes:
        queries: `(Q, 3, t, t)` thumbnails in [0, 1] of the model's input crop.
        query_names: name of each query.
        pixel_ids: `(Q, k)` store image ids, nearest first, ties by id.
        pixel_distances: `(Q, k)` Euclidean distance of the reduced RGB images in [0, 1].
        pixel_images: `(Q, k, 3, t, t)` thumbnails.
        pixel_names: names of these images.
        feature_ids: `(Q, k)` store image ids, nearest first, ties by id.
        feature_scores: `(Q, k)`, described by `score_name`.
        feature_images: `(Q, k, 3, t, t)` thumbnails.
        feature_names: names of these images.
        layer: the layer whose pooled units are the features.
        score_name: description of the feature scores.
        pixel_size: side of the reduced images.
        unreadable: number of images of the store that can no longer be read.
    """

    queries: Tensor
    query_names: list[str]
    pixel_ids: Tensor
    pixel_distances: Tensor
    pixel_images: Tensor
    pixel_names: list[list[str]]
    feature_ids: Tensor
    feature_scores: Tensor
    feature_images: Tensor
    feature_names: list[list[str]]
    layer: str
    score_name: str
    pixel_size: int
    unreadable: int

    def figure(self) -> Figure:
        """Two rows per query: its neighbours by pixels, and below them those by features."""
        pictures: list[Tensor] = []
        titles: list[str] = []
        rows: list[str] = []
        shown = min(len(self.queries), _QUERIES_SHOWN)
        every = [
            name
            for all_names in (self.pixel_names, self.feature_names)
            for name in chain.from_iterable(all_names[:shown])
        ]
        every += self.query_names[:shown]
        short = dict(zip(every, short_names(every), strict=True))
        for query in range(shown):
            for space, images, names, values in (
                ("pixels", self.pixel_images, self.pixel_names, self.pixel_distances),
                ("features", self.feature_images, self.feature_names, self.feature_scores),
            ):
                pictures += [self.queries[query], *images[query]]
                titles.append(f"{short[self.query_names[query]]}\nquery")
                titles += [
                    f"{short[name]}\n{value:.3g}"
                    for name, value in zip(names[query], values[query].tolist(), strict=True)
                ]
                rows.append(space)
        size = self.pixel_size
        note = f"pixels: Euclidean distance at {size}×{size} RGB; features: {self.score_name}"
        if shown < len(self.queries):
            note += f"; the first {shown} of {len(self.queries)} queries"
        sheet = Sheet(
            provenance=self.provenance,
            images=torch.stack(pictures),
            titles=titles,
            rows=[],
            columns=self.pixel_ids.shape[1] + 1,
            title=f"Nearest by pixels, and by {self.layer} of {self.provenance.model}",
            row_labels=rows,
            note=note,
        )
        return sheet.figure()

    def summary(self) -> list[dict[str, Any]]:
        """One row per query: its nearest image in each space, and how many of the k are in both."""
        return [
            {
                "query": self.query_names[row],
                "nearest_by_pixels": self.pixel_names[row][0],
                "pixel_distance": float(self.pixel_distances[row, 0]),
                "nearest_by_features": self.feature_names[row][0],
                "feature_score": float(self.feature_scores[row, 0]),
                "in_both": len(
                    set(self.pixel_ids[row].tolist()) & set(self.feature_ids[row].tolist())
                ),
            }
            for row in range(len(self.queries))
        ]


class NearestNeighbours(StoreTechnique):
    """Finds the images of a store nearest to a query, by pixels and by features.

    By pixels: `d = |p − q|₂` of the images reduced to `pixel_size` by averaging areas. By features:
    `cos(f, g)`, `|f − g|₂` or `f · g` of the pooled units of the store's layer, searched in the
    saved index if there is a current one. Neighbours by pixels share colours and composition,
    neighbours in a deep layer share the subject. Both use the same crop, the one that the model
    sees.

    Paper:
        Krizhevsky, Sutskever & Hinton, "ImageNet Classification with Deep Convolutional Neural
        Networks", NeurIPS 2012, figure 4.

    Raises:
        ImageError: a query image cannot be read, or the store's images are gone.
        ParameterError: a parameter is out of range, there is no query image, or the source is an
            array.
        StoreMismatch: the given model has other weights than the store's.
        StoreError: the store cannot be read.
        LayerNotFound: the store has no such layer.
        VectorIndexError: the saved index cannot be read.
    """

    k: int = Field(default=5, ge=1)
    """Number of neighbours per query; fewer if the store holds fewer."""
    metric: Literal["cosine", "l2", "ip"] = "cosine"
    """Comparison of features: cosine similarity, Euclidean distance or inner product."""
    exclude_identical: bool = True
    """Leave out images that equal the query in every pixel."""
    pixel_size: int = Field(default=32, ge=1, le=512)
    """Side in pixels of the reduced images that are compared."""

    def analyse(self, source: Rows, images: Any) -> Neighbours:
        """Neighbours of the query images in a store's layer.

        Raises:
            ParameterError: there is no query image, or the source is an array.
        """
        layer = self.layer_of(source)
        if images is None:
            raise ParameterError(f"{self.title()} needs query images", parameter="images")
        model = self.model_of(layer)
        queries = model.images(images).detach()
        pictures = source.pictures
        pixels = self._by_pixels(queries.cpu(), source)
        index = VectorIndex.of(layer, metric=self.metric)
        same = [np.asarray(found, np.int64) for found in pixels.same]
        spare = max(len(found) for found in same)
        hits = index.search_image(model, queries, self.k + spare, where=source.chosen)
        kept = [
            np.flatnonzero(~np.isin(ids, found)) for ids, found in zip(hits.ids, same, strict=True)
        ]
        k = min(self.k, *(len(rows) for rows in kept), *(len(ids) for ids in pixels.ids))
        if not k:
            raise ParameterError(
                f"{source.title} has no image other than the query", parameter="images"
            )
        feature_ids = np.stack([ids[at[:k]] for ids, at in zip(hits.ids, kept, strict=True)])
        scores = np.stack([row[at[:k]] for row, at in zip(hits.scores, kept, strict=True)])
        pixel_ids = np.stack([ids[:k] for ids in pixels.ids])
        names = query_names(images, len(queries))
        return Neighbours(
            provenance=self.provenance(source, queries=names),
            queries=_reduced(queries.cpu(), _THUMBNAIL_PX),
            query_names=names,
            pixel_ids=torch.from_numpy(pixel_ids),
            pixel_distances=torch.from_numpy(np.stack([row[:k] for row in pixels.distances])),
            pixel_images=_grid(pictures, pixel_ids),
            pixel_names=[source.names(row) for row in pixel_ids],
            feature_ids=torch.from_numpy(feature_ids),
            feature_scores=torch.from_numpy(scores),
            feature_images=_grid(pictures, feature_ids),
            feature_names=[source.names(row) for row in feature_ids],
            layer=layer.name,
            score_name=index.score_name,
            pixel_size=self.pixel_size,
            unreadable=len(pictures.lost),
        )

    def _by_pixels(self, queries: Tensor, rows: Rows) -> _Nearest:
        """Compare pixels in one pass over the store's images, without holding all of them."""
        nearest = _Nearest(len(queries), self.k)
        small = _flat(queries, self.pixel_size)
        with task("comparing pixels", total=len(rows)) as advance:
            for ids, batch in rows.pictures.batches(rows.ids):
                advance(len(ids))
                pixels = _flat(batch, self.pixel_size)
                for query, query_pixels in enumerate(small):
                    squares = np.square(pixels - query_pixels).sum(1)
                    distances = np.sqrt(squares).astype(np.float32)
                    keep = np.ones(len(ids), bool)
                    if self.exclude_identical:
                        for at in np.flatnonzero(distances == 0):
                            keep[at] = not torch.equal(batch[at], queries[query])
                        nearest.same[query] += ids[~keep].tolist()
                    nearest.update(query, ids[keep], distances[keep])
        return nearest


class _Nearest:
    """The k nearest images so far of each query, and the images identical to it."""

    def __init__(self, queries: int, k: int) -> None:
        self._k = k
        self.ids: list[Numbers] = [np.empty(0, np.int64) for _ in range(queries)]
        self.distances: list[Numbers] = [np.empty(0, np.float32) for _ in range(queries)]
        self.same: list[list[int]] = [[] for _ in range(queries)]

    def update(self, query: int, ids: Numbers, distances: Numbers) -> None:
        ids = np.concatenate([self.ids[query], ids])
        distances = np.concatenate([self.distances[query], distances])
        order = np.lexsort((ids, distances))[: self._k]
        self.ids[query], self.distances[query] = ids[order], distances[order]


def query_names(images: Any, count: int) -> list[str]:
    """Name of each query: its path if it is one, else its number."""
    items = list(images) if isinstance(images, list | tuple) else [images]
    if len(items) != count:
        items = [None] * count
    return [
        str(item) if isinstance(item, str | Path) else f"query {row}"
        for row, item in enumerate(items)
    ]


def _grid(pictures: StorePictures, ids: Numbers) -> Tensor:
    """Thumbnails `(Q, k, 3, t, t)` of ids `(Q, k)`."""
    flat = pictures.thumbnails(ids.ravel(), _THUMBNAIL_PX)
    return flat.reshape(*ids.shape, *flat.shape[1:])


def _reduced(images: Tensor, size: int) -> Tensor:
    """Images `(n, 3, H, W)` reduced to `size` pixels per side by averaging areas."""
    return functional.interpolate(images, (size, size), mode="area")


def _flat(images: Tensor, size: int) -> npt.NDArray[np.float64]:
    return _reduced(images, size).flatten(1).numpy().astype(np.float64)
