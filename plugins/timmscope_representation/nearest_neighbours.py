"""Nearest neighbours twice: by pixels, and by what a layer sees. The gap is what was learned."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
    HookedModel,
    ImageError,
    ParameterError,
    RepresentationTechnique,
    Result,
    Sheet,
    StoreLayer,
    VectorIndex,
    task,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = npt.NDArray[Any]

_BATCH = 32
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
    location: str | None = None
    """Where the store's images are now, if they have moved."""

    def analyse(self, source: Any, images: Any) -> Neighbours:
        """Neighbours of the query images in a store's layer."""
        if not isinstance(source, StoreLayer):
            raise ParameterError(
                f"{self.title()} shows images, which {type(source).__name__} has none of: "
                "pass a store",
                parameter="source",
            )
        if images is None:
            raise ParameterError(f"{self.title()} needs query images", parameter="images")
        model = self.model_of(source)
        queries = model.images(images).detach()
        library = _Library(source, model, self.location)
        pixels = self._by_pixels(queries.cpu(), library)
        index = VectorIndex.of(source, metric=self.metric)
        same = [np.asarray(found, np.int64) for found in pixels.same]
        spare = max(len(found) for found in same)
        hits = index.search_image(model, queries, self.k + spare)
        kept = [
            np.flatnonzero(~np.isin(ids, found)) for ids, found in zip(hits.ids, same, strict=True)
        ]
        k = min(self.k, *(len(rows) for rows in kept), *(len(ids) for ids in pixels.ids))
        if not k:
            raise ParameterError(
                f"{source.store.path} holds no image but the query itself", parameter="images"
            )
        feature_ids = np.stack([ids[at[:k]] for ids, at in zip(hits.ids, kept, strict=True)])
        scores = np.stack([row[at[:k]] for row, at in zip(hits.scores, kept, strict=True)])
        pixel_ids = np.stack([ids[:k] for ids in pixels.ids])
        names = query_names(images, len(queries))
        return Neighbours(
            provenance=self.provenance(
                model, store=str(source.store.path), layer=source.name, queries=names
            ),
            queries=_shrunk(queries.cpu(), _THUMBNAIL_PX),
            query_names=names,
            pixel_ids=torch.from_numpy(pixel_ids),
            pixel_distances=torch.from_numpy(np.stack([row[:k] for row in pixels.distances])),
            pixel_images=library.thumbnails(pixel_ids),
            pixel_names=library.names(pixel_ids),
            feature_ids=torch.from_numpy(feature_ids),
            feature_scores=torch.from_numpy(scores),
            feature_images=library.thumbnails(feature_ids),
            feature_names=library.names(feature_ids),
            layer=source.name,
            score_name=index.score_name,
            pixel_size=self.pixel_size,
            unreadable=library.lost,
        )

    def _by_pixels(self, queries: Tensor, library: _Library) -> _Nearest:
        """One pass over the store's images, in memory that does not grow with their number."""
        nearest = _Nearest(len(queries), self.k)
        small = _flat(queries, self.pixel_size)
        with task("comparing pixels", total=len(library)) as advance:
            for ids, batch in library.batches(advance):
                rows = _flat(batch, self.pixel_size)
                for query, wanted in enumerate(small):
                    distances = np.sqrt(np.square(rows - wanted).sum(1)).astype(np.float32)
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


class _Library:
    """The store's images as the model sees them, decoded again by a few threads."""

    def __init__(self, layer: StoreLayer, model: HookedModel, location: str | None) -> None:
        store = layer.store
        if not (location or store.manifest.images.location):
            raise ParameterError(
                f"{store.path} was mined from images in memory: say where they are now",
                parameter="location",
            )
        self._source = store.source(location)
        self._images = store.images
        self._prepare = model.preprocess
        self._ids = np.flatnonzero(self._images.readable)
        self.lost = 0

    def __len__(self) -> int:
        return len(self._ids)

    def batches(self, advance: Any) -> Iterator[tuple[Numbers, Tensor]]:
        """Ids `(n,)` and images `(n, 3, H, W)` of all that can still be read."""
        for ids, pictures in self._load(self._ids.tolist(), advance):
            found = [at for at, picture in enumerate(pictures) if picture is not None]
            self.lost += len(ids) - len(found)
            if found:
                yield (
                    np.asarray(ids, np.int64)[found],
                    torch.stack([picture for picture in pictures if picture is not None]),
                )
        if self.lost == len(self._ids):
            raise ImageError(
                f"none of the {self.lost} images of the store can be read any more: say where "
                "they are now with location"
            )

    def thumbnails(self, ids: Numbers) -> Tensor:
        """Small pictures `(Q, k, 3, t, t)`; grey where the image cannot be read any more."""
        wanted = sorted(set(ids.ravel().tolist()))
        missing = torch.full((3, _THUMBNAIL_PX, _THUMBNAIL_PX), 0.5)
        small = {}
        for part, pictures in self._load(wanted, lambda steps: None):
            for number, picture in zip(part, pictures, strict=True):
                small[number] = (
                    missing if picture is None else _shrunk(picture[None], _THUMBNAIL_PX)[0]
                )
        return torch.stack([torch.stack([small[number] for number in row]) for row in ids.tolist()])

    def names(self, ids: Numbers) -> list[list[str]]:
        return [[self._images.paths[number] for number in row] for row in ids.tolist()]

    def _load(
        self, ids: list[int], advance: Any
    ) -> Iterator[tuple[list[int], list[Tensor | None]]]:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(ids), _BATCH):
                part = ids[start : start + _BATCH]
                yield part, list(pool.map(self._picture, part))
                advance(len(part))

    def _picture(self, number: int) -> Tensor | None:
        try:
            return self._prepare(self._source.load(number))
        except ImageError:
            return None


def query_names(images: Any, count: int) -> list[str]:
    """What to call each query: its path where it is one, else its number."""
    items = list(images) if isinstance(images, list | tuple) else [images]
    if len(items) != count:
        items = [None] * count
    return [
        str(item) if isinstance(item, str | Path) else f"query {row}"
        for row, item in enumerate(items)
    ]


def _shrunk(images: Tensor, size: int) -> Tensor:
    """Images `(n, 3, H, W)` at `size` pixels a side, each the mean of the area it covers."""
    return functional.interpolate(images, (size, size), mode="area")


def _flat(images: Tensor, size: int) -> npt.NDArray[np.float64]:
    return _shrunk(images, size).flatten(1).numpy().astype(np.float64)


def _short(name: str) -> str:
    return PurePath(name).stem or name
