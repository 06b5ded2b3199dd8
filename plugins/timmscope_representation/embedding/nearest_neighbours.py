"""Nearest neighbours twice: by pixels, and by what a layer sees. The gap is what was learned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from timmscope import (
    ParameterError,
    RepresentationTechnique,
    Result,
    Rows,
    Sheet,
    StorePictures,
    VectorIndex,
    task,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = npt.NDArray[Any]

_THUMBNAIL_PX = 128
_QUERIES_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Neighbours(Result):
    """Nearest images of some queries, by pixels beside by features.

    Attributes:
        queries: `(Q, 3, t, t)` thumbnails in [0, 1], cropped as the model sees them.
        query_names: what each is called.
        pixel_ids: `(Q, k)` store image ids, nearest first, ties by id.
        pixel_distances: `(Q, k)` Euclidean distance of the small RGB pictures in [0, 1].
        pixel_images: `(Q, k, 3, t, t)` thumbnails.
        pixel_names: names of these images.
        feature_ids: `(Q, k)` store image ids, nearest first, ties by id.
        feature_scores: `(Q, k)`, as `score_name` says.
        feature_images: `(Q, k, 3, t, t)` thumbnails.
        feature_names: names of these images.
        layer: whose pooled units are the features.
        score_name: what a feature score is.
        pixel_size: side of the small pictures.
        unreadable: images of the store that could no longer be read.
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
        """Two rows a query: its neighbours by pixels, and below those by features."""
        pictures: list[Tensor] = []
        titles: list[str] = []
        rows: list[str] = []
        shown = min(len(self.queries), _QUERIES_SHOWN)
        for query in range(shown):
            for space, images, names, values in (
                ("pixels", self.pixel_images, self.pixel_names, self.pixel_distances),
                ("features", self.feature_images, self.feature_names, self.feature_scores),
            ):
                pictures += [self.queries[query], *images[query]]
                titles.append(f"{_short(self.query_names[query])}\nquery")
                titles += [
                    f"{_short(name)}\n{value:.3g}"
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
        """A query a row: its nearest image in either space, and how many of the k are in both."""
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


class NearestNeighbours(RepresentationTechnique):
    """Images of a store nearest to a query, in pixel space beside feature space.

    After Krizhevsky, Sutskever & Hinton (NeurIPS 2012, figure 4): neighbours by pixels share
    colours and composition, neighbours in a deep layer share the subject. Both spaces look at the
    same crop, the one the model sees. Pixels are compared at `pixel_size`, shrunk by averaging;
    features are the pooled units of the store's layer, searched in the saved index if there is a
    current one.
    """

    k: int = Field(default=5, ge=1)
    """Neighbours a query; fewer where the store holds fewer."""
    metric: Literal["cosine", "l2", "ip"] = "cosine"
    """How features are compared: cosine similarity, Euclidean distance or inner product."""
    exclude_identical: bool = True
    """Leave out images that are the query itself, pixel by pixel."""
    pixel_size: int = Field(default=32, ge=1, le=512)
    """Side in pixels at which pictures are compared."""

    def analyse(self, source: Rows, images: Any) -> Neighbours:
        """Neighbours of the query images in a store's layer."""
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
                f"{source.title} has no image but the query itself", parameter="images"
            )
        feature_ids = np.stack([ids[at[:k]] for ids, at in zip(hits.ids, kept, strict=True)])
        scores = np.stack([row[at[:k]] for row, at in zip(hits.scores, kept, strict=True)])
        pixel_ids = np.stack([ids[:k] for ids in pixels.ids])
        names = query_names(images, len(queries))
        return Neighbours(
            provenance=self.provenance(model, **source.facts, queries=names),
            queries=_shrunk(queries.cpu(), _THUMBNAIL_PX),
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
        """One pass over the store's images, in memory that does not grow with their number."""
        nearest = _Nearest(len(queries), self.k)
        small = _flat(queries, self.pixel_size)
        with task("comparing pixels", total=len(rows)) as advance:
            for ids, batch in rows.pictures.batches(rows.ids):
                advance(len(ids))
                seen = _flat(batch, self.pixel_size)
                for query, wanted in enumerate(small):
                    distances = np.sqrt(np.square(seen - wanted).sum(1)).astype(np.float32)
                    keep = np.ones(len(ids), bool)
                    if self.exclude_identical:
                        for at in np.flatnonzero(distances == 0):
                            keep[at] = not torch.equal(batch[at], queries[query])
                        nearest.same[query] += ids[~keep].tolist()
                    nearest.update(query, ids[keep], distances[keep])
        return nearest


class _Nearest:
    """The k nearest so far of each query, and what was left out as identical to it."""

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
    """What to call each query: its path where it is one, else its number."""
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


def _shrunk(images: Tensor, size: int) -> Tensor:
    """Images `(n, 3, H, W)` at `size` pixels a side, each the mean of the area it covers."""
    return functional.interpolate(images, (size, size), mode="area")


def _flat(images: Tensor, size: int) -> npt.NDArray[np.float64]:
    return _shrunk(images, size).flatten(1).numpy().astype(np.float64)


def _short(name: str) -> str:
    return PurePath(name).stem or name
