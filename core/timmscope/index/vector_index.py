"""`VectorIndex` finds the nearest rows of a store's layer by vector, by row, by image or objective.

A backend only holds rows and searches them. A `VectorIndex` also knows the store and the model that
the rows come from, which rows were left out and why, what the scores mean, and whether store, model
and index still belong together.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from timmscope.index import building, queries, updates
from timmscope.index.backend import Backend, Ids
from timmscope.index.files import (
    IndexRecord,
    UnreadableIndex,
    index_path,
    salvaged_record,
    write_index,
    write_record,
)
from timmscope.index.filters import Where
from timmscope.index.loading import read_index
from timmscope.index.metrics import SCORE_NAMES, Metric, prepare_rows
from timmscope.index.ownership import locate, missing_rows
from timmscope.index.queries import Hits
from timmscope.index.source import array_source, store_source
from timmscope_registry import PluginError, VectorIndexError

if TYPE_CHECKING:
    from timmscope.models import HookedModel
    from timmscope.objectives import Objective
    from timmscope.objectives.match import Distance
    from timmscope.store import Store, StoreLayer


class VectorIndex:
    """An index of the rows of one layer; made by `build`, `from_array` or `load`.

    Attributes:
        record: what the index was made from, and how many rows were left out.
        path: the index file, or None if the index was not saved.
    """

    def __init__(
        self, backend: Backend, record: IndexRecord, *, store: Store | None = None
    ) -> None:
        self._backend = backend
        self._store = store
        self._changed = True
        self.record = record
        self.path: Path | None = None

    # Building

    @classmethod
    def build(
        cls,
        layer: StoreLayer,
        *,
        metric: Metric = "cosine",
        backend: str = "auto",
        recall: float = 0.95,
        memory: int | None = None,
        seed: int = 0,
    ) -> VectorIndex:
        """Index the pooled rows of a store's layer; ids are the store's image ids.

        The rows of all finished shards are streamed; `add_missing` adds the others later. Images
        that could not be read, and rows with NaN or infinity, are left out and counted in `record`.
        The same rows and settings give the same index, byte for byte.

        Args:
            layer: the layer, from `store.layer(name)`.
            metric: `cosine`, `l2` or `ip`; see `Hits`.
            backend: name of the engine; `auto` chooses by the other settings and records why.
            recall: share of the 10 true neighbours that searches shall find on average.
            memory: bytes that the index may keep in memory during searches; None for no limit.
            seed: seed of everything random.

        Raises:
            VectorIndexError: the metric or backend is unknown, there is no row to index, or the
                memory is too small.
            StoreCorrupted: a shard cannot be read.
        """
        engine, record = building.build(
            store_source(layer),
            metric=metric,
            backend=backend,
            recall=recall,
            memory=memory,
            seed=seed,
            scratch=layer.store.path,
        )
        return cls(engine, record, store=layer.store)

    @classmethod
    def from_array(
        cls,
        rows: npt.ArrayLike,
        *,
        ids: npt.ArrayLike | None = None,
        metric: Metric = "cosine",
        backend: str = "auto",
        recall: float = 0.95,
        memory: int | None = None,
        seed: int = 0,
        name: str = "array",
    ) -> VectorIndex:
        """Index the rows of an array `(N, d)`; ids are their positions, or `ids` `(N,)`.

        Raises:
            VectorIndexError: as for `build`; also if a shape is wrong, or an id is negative or
                occurs twice.
        """
        engine, record = building.build(
            array_source(rows, ids, name),
            metric=metric,
            backend=backend,
            recall=recall,
            memory=memory,
            seed=seed,
            scratch=None,
        )
        return cls(engine, record)

    # Changing

    def add(self, rows: npt.ArrayLike, ids: npt.ArrayLike) -> int:
        """Add rows `(n, dim)` under ids `(n,)`, and return the number of finite rows among them.

        Raises:
            VectorIndexError: a shape is wrong, or an id occurs twice or is in the index.
        """
        self._changed = True
        self.record, added = updates.add(self._backend, self.record, rows, ids)
        return added

    def add_missing(self) -> int:
        """Add the rows that the store has gained since the build, and return their number.

        The engine is not trained again: build a new index if this one has grown many times over.

        Raises:
            VectorIndexError: the index belongs to no store, or the store was mined again.
            StoreCorrupted: a shard cannot be read.
        """
        self._store = updates.reopened(self._store, self.layer)
        self._changed = True
        self.record, added = updates.add_missing(self._backend, self.record, self._store)
        return added

    def remove(self, ids: npt.ArrayLike) -> int:
        """Remove rows, and return their number. Their ids may be added again.

        Raises:
            VectorIndexError: an id is unknown or occurs twice, or no row would be left.
        """
        self._changed = True
        self.record, removed = updates.remove(self._backend, self.record, ids)
        return removed

    def compact(self) -> None:
        """Free the space of removed rows; on disk, the next `save` frees it."""
        self._changed = True
        self._backend.compact()
        self.record = updates.refreshed(self._backend, self.record)

    def tune(self, recall: float) -> float:
        """Choose the fastest search parameters that reach a recall, and return the measured recall.

        The queries are 1,000 rows of the index (all rows if there are fewer), each searched among
        the others and compared with exact search. The parameters, their recall and their queries
        per second are written to `record.facts`; `save` keeps them. If no parameters reach the
        recall, a warning says so, and the best ones are used. A graph (`hnsw`) finds rows that it
        contains more easily than others, so the recall that was measured when it was built, with
        rows outside the graph, is more accurate.

        Args:
            recall: share of the 10 true neighbours that searches shall find on average.

        Raises:
            VectorIndexError: `recall` is not above 0 and at most 1.
        """
        self.record = building.tune(self._backend, self.record, recall, timed=True)
        return building.warn_if_below(self.record, recall)

    # Saving and loading

    def save(self, path: str | Path | None = None) -> Path:
        """Write the index and its record atomically, and return the path of the index.

        If only `tune` has changed the index, only the record is written.

        Args:
            path: by default ``STORE/index/LAYER.faiss``, or for an index of an array the path that
                it was loaded from or saved to.

        Raises:
            VectorIndexError: no path is known, or it cannot be written.
        """
        target = self.path if path is None else Path(path)
        if path is None and self._store is not None:
            target = index_path(self._store.path, self.record.layer)
        if target is None:
            raise VectorIndexError(
                f"the index of {self.record.layer!r} belongs to no store: "
                "name a file, as in save('NAME.faiss')"
            )
        if self._changed:  # also by a change that was interrupted after some rows
            self.record = updates.refreshed(self._backend, self.record)
        unchanged = not self._changed and target == self.path
        if not (unchanged and write_record(target, self.record)):
            self.record = write_index(target, self.record, self._backend.save)
        self.path, self._changed = target, False
        return target

    @classmethod
    def load(
        cls,
        source: Store | str | Path,
        layer: str | None = None,
        *,
        verify: bool | None = None,
        mmap: bool = True,
    ) -> VectorIndex:
        """Read a saved index, and check that it is undamaged and still belongs to its store.

        A warning says if the store has rows that the index lacks (`missing_rows`).

        Args:
            source: a store, its folder, or the path of an index file.
            layer: the layer; may be left out if the store has only one index.
            verify: compare the file's SHA-256, which reads the whole file. By default it is
                compared for files up to 64 MiB; of larger ones the size and the header are.
            mmap: read rows from the file only when they are needed, so that loading takes
                milliseconds and processes share memory; otherwise read all rows now.

        Raises:
            LayerNotFound: the store has no such layer.
            VectorIndexError: the index is missing, truncated, altered, made by a newer release, or
                built from another store than the present one.
        """
        path, store = locate(source, layer)
        index = cls._load(path, store, verify=verify, mmap=mmap)
        if index.missing_rows:
            warnings.warn(
                f"{store} has {index.missing_rows} rows of {index.layer} that its index lacks: "
                "add_missing() adds them",
                stacklevel=2,
            )
        return index

    @classmethod
    def of(
        cls, layer: StoreLayer, *, metric: Metric | None = "cosine", keep: bool = False
    ) -> VectorIndex:
        """Return the saved index of a layer if it can be used, or else build a new one.

        The saved index is used if it is undamaged, belongs to the store's present rows, and has the
        metric. If this installation cannot read it, because the plugin or the release that built it
        is missing, it is kept, a warning says so, and the new index is exact.

        Args:
            layer: the layer, from `store.layer(name)`.
            metric: `cosine`, `l2` or `ip`, see `Hits`; None for the metric of the saved index, and
                cosine for a new one.
            keep: save a new index, unless there is a good one of another metric. If it cannot be
                saved, as in a read-only store, a warning says so.

        Raises:
            VectorIndexError: there is no row to index.
            StoreError: the saved index cannot be read now.
        """
        path = index_path(layer.store.path, layer.name)
        found = None
        try:
            found = cls._load(path, layer.store) if path.exists() else None
        except (UnreadableIndex, PluginError) as error:
            warnings.warn(f"{error}; until then every search reads all rows", stacklevel=2)
            record = salvaged_record(path)
            wanted = metric or (record.metric if record else "cosine")
            return cls.build(layer, metric=wanted, backend="flat")
        except VectorIndexError:
            pass  # it is damaged, or of other rows: replaced by a new one
        if found is not None and metric in (None, found.metric):
            if found.missing_rows:
                found.add_missing()
                if keep:
                    found._save_or_warn()
            return found
        index = cls.build(layer, metric=metric or "cosine")
        if keep and found is None:
            index._save_or_warn()
        return index

    def _save_or_warn(self) -> None:
        try:
            self.save()
        except VectorIndexError as error:
            warnings.warn(f"{error}; every search builds it again", stacklevel=3)

    @classmethod
    def _load(
        cls, path: Path, store: Store | None, *, verify: bool | None = None, mmap: bool = True
    ) -> VectorIndex:
        engine, record = read_index(path, store, verify=verify, mmap=mmap)
        index = cls(engine, record, store=store)
        index.path, index._changed = path, False
        return index

    # Properties

    @property
    def missing_rows(self) -> int:
        """Number of rows that the store has gained since the index was built; 0 without a store."""
        return 0 if self._store is None else missing_rows(self.record, self._store)

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
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of `build` that this index was made with."""
        return self.record.settings

    @property
    def ids(self) -> Ids:
        """Ids of the rows, in the order in which they were added."""
        return self._backend.ids

    @property
    def higher_is_nearer(self) -> bool:
        """Whether scores are similarities; otherwise they are distances."""
        return self.metric != "l2"

    @property
    def score_name(self) -> str:
        """Name of the score, for people."""
        return SCORE_NAMES[self.metric]

    def info(self) -> dict[str, Any]:
        """Return the record, the path and the number of missing rows as plain values."""
        return {
            **self.record.model_dump(mode="json", exclude={"shards", "sha256"}),
            "shards": len(self.record.shards),
            "path": None if self.path is None else str(self.path),
            "missing_rows": self.missing_rows,
        }

    def __len__(self) -> int:
        return len(self._backend)

    def __repr__(self) -> str:
        return (
            f"<VectorIndex of {self.layer!r}: {len(self)} rows of {self.dim}, {self.score_name}, "
            f"{self.record.backend}>"
        )

    # Searching

    def search(self, vectors: npt.ArrayLike, k: int = 10, *, where: Where | None = None) -> Hits:
        """Find the rows nearest to vectors.

        Args:
            vectors: `(Q, dim)`, or one vector `(dim,)`, which is a batch of one.
            k: number of rows; all rows if there are fewer.
            where: the rows that may be found: a condition on the store's images as in
                ``store.images.where`` (``"label == 'dog'"``), a mask of bools whose entry number i
                is for id i, or ids. By default all rows.

        Raises:
            VectorIndexError: the width is wrong, a value is not finite, `k` is below 1, or the
                filter does not fit the index.
        """
        rows = queries.checked_queries(vectors, self.record)
        return self._search(prepare_rows(rows, self.metric), k, where)

    def search_row(
        self,
        row_id: int,
        k: int = 10,
        *,
        exclude_self: bool = True,
        where: Where | None = None,
    ) -> Hits:
        """Find the rows nearest to a row of the index.

        Args:
            row_id: the id of the row.
            k: number of rows; all rows if there are fewer.
            exclude_self: leave out the row itself.
            where: the rows that may be found; see `search`.

        Raises:
            VectorIndexError: the index has no such row, `k` is below 1, or the filter does not fit
                the index.
        """
        row = queries.row_query(self._backend, self.layer, row_id)
        hits = self._search(row, queries.checked_k(k) + exclude_self, where)
        if not exclude_self:
            return hits
        others = np.flatnonzero(hits.ids[0] != row_id)[:k]
        return Hits(hits.ids[:, others], hits.scores[:, others])

    def match(self, row_ids: int | Sequence[int], *, distance: Distance | None = None) -> Objective:
        """Return the objective that compares the layer's pooled activation with a row of the index.

        It accepts only the model that computed the rows.

        Args:
            row_ids: the id of a row; with several, one target per image.
            distance: `squared`, minus the relative squared error, or `cosine`, the default and the
                only choice of an index by cosine, whose rows have length 1.

        Raises:
            VectorIndexError: the index has no such row, is of an array, or has no lengths.
            ObjectiveError: the row is zero.
        """
        from timmscope.models.weights_digest import activations_digest
        from timmscope.objectives.match import match_rows

        if self.record.weights_sha256 is None:
            raise VectorIndexError(
                f"the index of {self.layer!r} was built from an array, so no model computed its "
                "rows: use match(LAYER, vector=…)"
            )
        chosen: Distance = distance or ("cosine" if self.metric == "cosine" else "squared")
        if self.metric == "cosine" and chosen != "cosine":
            raise VectorIndexError(
                f"rows of the index of {self.layer!r} have length 1, because it is by cosine: "
                "match by cosine, or match a row of the store"
            )
        numbers = row_ids if isinstance(row_ids, Sequence) else [row_ids]
        rows = [queries.row_query(self._backend, self.layer, number)[0] for number in numbers]
        names = [f"row {number} of the index" for number in numbers]
        digest = activations_digest(self.record.weights_sha256, self.record.defences)
        by = (self.record.model or "another model", digest)
        values = np.asarray(rows, np.float64)
        return match_rows(self.layer, values, distance=chosen, names=names, computed_by=by)

    def search_image(
        self, model: HookedModel, images: Any, k: int = 10, *, where: Where | None = None
    ) -> Hits:
        """Find the rows nearest to the features of images.

        Args:
            model: the model that the store was mined with.
            images: one or several images, as for `model.images`.
            k: number of rows; all rows if there are fewer.
            where: the rows that may be found; see `search`.

        Raises:
            StoreMismatch: the model is another one.
            VectorIndexError: features are not finite, or the filter does not fit the index.
            ImageError: an image cannot be read.
        """
        return self.search(queries.image_queries(self.record, model, images), k, where=where)

    def search_objective(
        self,
        objective: Objective | str | int,
        k: int = 10,
        *,
        where: Where | None = None,
        model: HookedModel | None = None,
    ) -> Hits:
        """Find the rows nearest to an objective's direction at this layer, by the index's metric.

        With `ip`, scores are the objective's own, without the offset of a class; with `cosine`,
        only directions are compared. `strongest` ranks by the objective, without an index.

        Args:
            objective: units, directions and classes, and sums and multiples of them, at this layer.
            k: number of rows; all rows if there are fewer.
            where: the rows that may be found; see `search`.
            model: the store's model; by default it is loaded if the objective needs it.

        Raises:
            VectorIndexError: the index is of an array, or the objective reads another layer.
            ObjectiveError: the objective is not a linear function of the layer's rows.
        """
        vector = queries.objective_query(self.record, self._store, objective, model)
        return self.search(vector, k, where=where)

    def _search(self, rows: npt.NDArray[np.float32], k: int, where: Where | None) -> Hits:
        k = queries.checked_k(k)
        return queries.search_engine(self._backend, self.record, self._store, rows, k, where)
