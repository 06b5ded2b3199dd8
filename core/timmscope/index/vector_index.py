"""`VectorIndex`: the nearest rows of a store's layer, by vector, by row or by image.

It knows what a backend need not: which store and model the rows came from, which rows were left
out and why, what the numbers mean, and whether store, model and index still belong together.
"""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from timmscope.index.backend import Backend, Ids, Rows, find_backend
from timmscope.index.files import IndexRecord, index_path, read_record, write_index
from timmscope.index.kept import check_belongs, locate, missing_rows
from timmscope.index.metrics import SCORE_NAMES, Metric, prepared, space_of
from timmscope.index.source import RowSource, array_source, store_source
from timmscope.progress import task
from timmscope_registry import VectorIndexError

if TYPE_CHECKING:
    from timmscope.models import HookedModel
    from timmscope.store import Store, StoreLayer

BATCH = 4096
"""Rows read at a time."""


class Hits(NamedTuple):
    """Nearest rows of some queries, nearest first, equal scores by ascending id.

    Attributes:
        ids: `(Q, k)` int64, store image ids.
        scores: `(Q, k)` float32. By the index's metric: `cosine` similarity in [-1, 1], higher is
            nearer, 0 where a vector has length 0; `l2` Euclidean distance (not squared), lower is
            nearer; `ip` inner product, higher is nearer.
    """

    ids: Ids
    scores: Rows


class VectorIndex:
    """Rows of one layer, ready to be searched. Made by `build`, `from_array` or `load`.

    Attributes:
        record: what it was made from, and what was left out.
        path: the index file, or None while it was not saved.
    """

    def __init__(
        self, backend: Backend, record: IndexRecord, *, store: Store | None = None
    ) -> None:
        self._backend = backend
        self._store = store
        self.record = record
        self.path: Path | None = None

    # Making

    @classmethod
    def build(
        cls, layer: StoreLayer, *, metric: Metric = "cosine", backend: str = "flat"
    ) -> VectorIndex:
        """Index the pooled rows of a store's layer; ids are the store's image ids.

        Rows are streamed. Images that could not be read have no row; rows with NaN or infinity
        are left out. Both are counted in `record`.

        Args:
            layer: as `store.layer(name)` gives it.
            metric: `cosine`, `l2` or `ip`; see `Hits`.
            backend: name of the engine.

        Raises:
            VectorIndexError: unknown metric or backend, or no row to index.
            StoreCorrupted: a shard cannot be read.
        """
        return cls._build(store_source(layer, BATCH), metric, backend)

    @classmethod
    def from_array(
        cls,
        rows: npt.ArrayLike,
        *,
        ids: npt.ArrayLike | None = None,
        metric: Metric = "cosine",
        backend: str = "flat",
        name: str = "array",
    ) -> VectorIndex:
        """Index rows `(N, d)` of one's own; ids are their positions, or `ids` `(N,)`.

        Raises:
            VectorIndexError: wrong shapes, ids that are negative or double, or no finite row.
        """
        return cls._build(array_source(rows, ids, name, BATCH), metric, backend)

    @classmethod
    def _build(cls, source: RowSource, metric: Metric, backend: str) -> VectorIndex:
        if metric not in SCORE_NAMES:
            raise VectorIndexError(
                f"no metric is called {metric!r}: use one of {', '.join(SCORE_NAMES)}"
            )
        engine = find_backend(backend)(source.dim, space_of(metric), capacity=source.count)
        non_finite: list[int] = []
        with task("indexing", total=source.count) as advance:
            for ids, rows in source.batches:
                good = np.isfinite(rows).all(1)
                non_finite.extend(ids[~good].tolist())
                engine.add(prepared(rows[good], metric), ids[good])
                advance(len(ids))
        if not len(engine):
            reason = f": all {len(non_finite)} hold NaN or infinity" if non_finite else ""
            raise VectorIndexError(f"{source.name} has no row to index{reason}")
        record = IndexRecord(
            layer=source.layer,
            metric=metric,
            backend=backend,
            dim=source.dim,
            count=len(engine),
            failed=source.failed,
            non_finite=len(non_finite),
            model=source.model,
            weights_sha256=source.weights_sha256,
            precision=source.precision,
            shards=source.shards,
            facts=engine.facts(),
        )
        return cls(engine, record, store=source.store)

    # Disk

    def save(self, path: str | Path | None = None) -> Path:
        """Write the index and its record atomically; returns the path of the index.

        Args:
            path: by default ``STORE/index/LAYER.faiss``; needed for an index of an array.

        Raises:
            VectorIndexError: no path is known, or it cannot be written.
        """
        if path is None:
            if self._store is None:
                raise VectorIndexError(
                    f"the index of {self.record.layer!r} belongs to no store: "
                    "say where to, save('NAME.faiss')"
                )
            target = index_path(self._store.path, self.record.layer)
        else:
            target = Path(path)
        self.record = write_index(target, self.record, self._backend.save)
        self.path = target
        return target

    @classmethod
    def load(
        cls, source: Store | str | Path, layer: str | None = None, *, verify: bool = True
    ) -> VectorIndex:
        """Read an index back, and check that it is whole and still belongs to its store.

        Warns when the store has rows that the index lacks (`missing_rows`).

        Args:
            source: a store, its folder, or the path of an index file.
            layer: which layer's, for a store; may be left out when there is only one index.
            verify: compare the file's SHA-256, which reads it once more.

        Raises:
            LayerNotFound: the store has no such layer.
            VectorIndexError: missing, truncated, altered, made by a newer version, or built from
                another store than the one now there.
        """
        path, store = locate(source, layer)
        index = cls._load(path, store, verify)
        if index.missing_rows:
            warnings.warn(
                f"{store} has {index.missing_rows} rows of {index.layer} that its index lacks: "
                "build it again to find them",
                stacklevel=2,
            )
        return index

    @classmethod
    def of(cls, layer: StoreLayer, *, metric: Metric = "cosine", keep: bool = False) -> VectorIndex:
        """The saved index of a layer if it is whole, current and of that metric; else a new one.

        Args:
            layer: as `store.layer(name)` gives it.
            metric: `cosine`, `l2` or `ip`; see `Hits`.
            keep: save a new one, unless a good one of another metric is there.

        Raises:
            VectorIndexError: no row to index, or the new index cannot be saved.
        """
        path = index_path(layer.store.path, layer.name)
        found = None
        if path.exists():
            with contextlib.suppress(VectorIndexError):
                found = cls._load(path, layer.store, verify=True)
        current = found is not None and not found.missing_rows
        if found is not None and current and found.metric == metric:
            return found
        index = cls.build(layer, metric=metric)
        if keep and not current:
            index.save()
        return index

    @classmethod
    def _load(cls, path: Path, store: Store | None, verify: bool) -> VectorIndex:
        record = read_record(path, verify=verify)
        try:
            engine = find_backend(record.backend).load(path, record.dim, space_of(record.metric))
        except VectorIndexError:
            raise
        except Exception as error:  # engines raise what they like on a damaged file
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise VectorIndexError(
                f"the index {path} cannot be read ({line}): build again"
            ) from error
        if len(engine) != record.count:
            raise VectorIndexError(
                f"the index {path} holds {len(engine)} rows, its record says {record.count}: "
                "build it again"
            )
        index = cls(engine, record, store=store)
        index.path = path
        if store is not None:
            check_belongs(path, record, store)
        return index

    @property
    def missing_rows(self) -> int:
        """Rows that the store has gained since the index was built; 0 without a store."""
        return 0 if self._store is None else missing_rows(self.record, self._store)

    # What it is

    @property
    def layer(self) -> str:
        """Name of the layer."""
        return self.record.layer

    @property
    def metric(self) -> Metric:
        """`cosine`, `l2` or `ip`."""
        return self.record.metric

    @property
    def dim(self) -> int:
        """Width of a row."""
        return self.record.dim

    @property
    def ids(self) -> Ids:
        """Ids of the rows, in the order they were added."""
        return self._backend.ids

    @property
    def higher_is_nearer(self) -> bool:
        """Whether scores are similarities; else they are distances."""
        return self.metric != "l2"

    @property
    def score_name(self) -> str:
        """What a score is, in words."""
        return SCORE_NAMES[self.metric]

    def __len__(self) -> int:
        return len(self._backend)

    def __repr__(self) -> str:
        return (
            f"<VectorIndex of {self.layer!r}: {len(self)} rows of {self.dim}, {self.score_name}, "
            f"{self.record.backend}>"
        )

    # Searching

    def search(self, vectors: npt.ArrayLike, k: int = 10) -> Hits:
        """Find the rows nearest to vectors.

        Args:
            vectors: `(Q, dim)`, or one vector `(dim,)`, which is a batch of one.
            k: how many; with fewer rows than that, all of them are returned.

        Raises:
            VectorIndexError: wrong width, values that are not finite, or `k` below 1.
        """
        queries = np.atleast_2d(np.asarray(vectors, np.float32))
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise VectorIndexError(
                f"queries have shape {np.shape(vectors)}; the rows of {self.layer!r} have "
                f"{self.dim} values: expected (Q, {self.dim})"
            )
        bad = np.flatnonzero(~np.isfinite(queries).all(1))
        if len(bad):
            raise VectorIndexError(
                f"{len(bad)} of {len(queries)} queries hold NaN or infinity, the first is {bad[0]}"
            )
        return self._search(prepared(queries, self.metric), k)

    def search_row(self, row_id: int, k: int = 10, *, exclude_self: bool = True) -> Hits:
        """Find the rows nearest to a row of the index.

        Args:
            row_id: its id.
            k: how many; with fewer rows than that, all of them are returned.
            exclude_self: leave the row itself out.

        Raises:
            VectorIndexError: the index has no such row, or `k` is below 1.
        """
        hits = self._search(self._row(row_id), k + 1 if exclude_self and k > 0 else k)
        if not exclude_self:
            return hits
        keep = np.flatnonzero(hits.ids[0] != row_id)[:k]
        return Hits(hits.ids[:, keep], hits.scores[:, keep])

    def search_image(self, model: HookedModel, images: Any, k: int = 10) -> Hits:
        """Find the rows nearest to images, seen through the model that made the rows.

        Args:
            model: must have the weights that the store was mined with.
            images: one or several, as `model.images` takes them.
            k: how many; with fewer rows than that, all of them are returned.

        Raises:
            VectorIndexError: another model, or features that are not finite.
            ImageError: an image cannot be read.
        """
        from timmscope.index.embedding import embed

        if self.record.weights_sha256 is None:
            raise VectorIndexError(
                f"the index of {self.layer!r} was built from an array, so no model can be checked "
                "against it: search by vector"
            )
        if model.weights_sha256 != self.record.weights_sha256:
            raise VectorIndexError(
                f"{model.id} has other weights than {self.record.model}, which made the rows of "
                f"{self.layer!r}: search with that model"
            )
        pictures = model.images(images)
        rows = embed(model, pictures, self.layer, precision=self.record.precision)
        return self.search(rows, k)

    def _row(self, row_id: int) -> Rows:
        try:
            return self._backend.rows(np.asarray([row_id], np.int64))
        except KeyError:
            known = self.ids
            raise VectorIndexError(
                f"the index of {self.layer!r} has no row {row_id}: it holds {len(self)} ids from "
                f"{known.min()} to {known.max()}, without images that failed or are not finite"
            ) from None

    def _search(self, queries: Rows, k: int) -> Hits:
        if k < 1:
            raise VectorIndexError(f"k is {k}: ask for at least one neighbour")
        values, ids = self._backend.search(queries, min(int(k), len(self)))
        if self.metric == "cosine":
            values = np.clip(values, -1, 1)  # rounding of normalised rows
        return Hits(ids, values)
