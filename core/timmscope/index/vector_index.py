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

from timmscope.index import building
from timmscope.index import updates as upkeep
from timmscope.index.backend import Backend, Ids, Rows, checked_found, find_backend
from timmscope.index.files import (
    IndexRecord,
    held,
    index_path,
    read_record,
    write_index,
    write_record,
)
from timmscope.index.filters import Where, allowed_ids
from timmscope.index.metrics import SCORE_NAMES, Metric, prepared, space_of
from timmscope.index.ownership import check_belongs, locate, missing_rows
from timmscope.index.source import array_source, store_source
from timmscope.store.model import require_weights
from timmscope_registry import VectorIndexError

if TYPE_CHECKING:
    from timmscope.models import HookedModel
    from timmscope.objectives import Objective
    from timmscope.store import Store, StoreLayer


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
        self._changed = True
        self.record = record
        self.path: Path | None = None

    # Making

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

        Rows are streamed, of all shards that are finished: `add_missing` adds the others later.
        Images that could not be read have no row; rows with NaN or infinity are left out. Both are
        counted in `record`. The same rows and settings give the same index, byte for byte.

        Args:
            layer: as `store.layer(name)` gives it.
            metric: `cosine`, `l2` or `ip`; see `Hits`.
            backend: name of the engine; `auto` chooses by the other settings and says why.
            recall: share of the 10 true neighbours that searches are to find on average.
            memory: bytes that the index may keep in memory while it is searched; no limit if None.
            seed: of everything random.

        Raises:
            VectorIndexError: unknown metric or backend, no row to index, or too little memory.
            StoreCorrupted: a shard cannot be read.
        """
        source = store_source(layer)
        engine, record = building.build(
            source,
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
        """Index rows `(N, d)` of one's own; ids are their positions, or `ids` `(N,)`.

        Raises:
            VectorIndexError: as for `build`, wrong shapes, or ids that are negative or double.
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

    # Keeping

    def add(self, rows: npt.ArrayLike, ids: npt.ArrayLike) -> int:
        """Add rows `(n, dim)` under ids `(n,)`; returns how many, without those not finite.

        Raises:
            VectorIndexError: wrong shapes, or an id that is double or there already.
        """
        self._changed = True
        self.record, added = upkeep.add(self._backend, self.record, rows, ids)
        return added

    def add_missing(self) -> int:
        """Add the rows that the store has gained since; returns how many.

        The engine is not trained again: build anew when the index grew many times over.

        Raises:
            VectorIndexError: the index belongs to no store, or the store was mined again.
            StoreCorrupted: a shard cannot be read.
        """
        self._store = upkeep.reopened(self._store, self.layer)
        self._changed = True
        self.record, added = upkeep.add_missing(self._backend, self.record, self._store)
        return added

    def remove(self, ids: npt.ArrayLike) -> int:
        """Take rows out; returns how many. Their ids may be added again.

        Raises:
            VectorIndexError: an id that is not there or comes twice, or no row would be left.
        """
        self._changed = True
        self.record, removed = upkeep.remove(self._backend, self.record, ids)
        return removed

    def compact(self) -> None:
        """Give back what removed rows still take up, on disk after the next `save`."""
        self._changed = True
        self._backend.compact()
        self.record = upkeep.current(self._backend, self.record)

    def tune(self, recall: float) -> float:
        """Choose the quickest search parameters that reach a recall; returns what is reached.

        Measured with 1,000 rows of the index (all, where there are fewer), each searched for
        among the others, against exact search. What was chosen, its recall and its queries per
        second go into `record.facts`; `save` keeps them. Warns when the recall cannot be reached:
        the best parameters are in use then. A graph (`hnsw`) finds rows that are in it more easily
        than others: what was measured when it was built, by rows outside, is nearer the truth.

        Args:
            recall: share of the 10 true neighbours that searches are to find on average.

        Raises:
            VectorIndexError: `recall` is not above 0 and at most 1.
        """
        self.record = building.tuned(self._backend, self.record, recall, timed=True)
        return building.check_reached(self.record, recall)

    def info(self) -> dict[str, Any]:
        """What the index is, in plain values: its record, its size and the rows that it lacks."""
        return {
            **self.record.model_dump(mode="json", exclude={"shards", "sha256"}),
            "shards": len(self.record.shards),
            "path": None if self.path is None else str(self.path),
            "missing_rows": self.missing_rows,
        }

    # Disk

    def save(self, path: str | Path | None = None) -> Path:
        """Write the index and its record atomically; returns the path of the index.

        After `tune` alone only the record is written.

        Args:
            path: by default ``STORE/index/LAYER.faiss``, or where an index of an array was loaded
                from or saved to before.

        Raises:
            VectorIndexError: no path is known, or it cannot be written.
        """
        if path is None:
            if self._store is not None:
                target = index_path(self._store.path, self.record.layer)
            elif self.path is not None:
                target = self.path
            else:
                raise VectorIndexError(
                    f"the index of {self.record.layer!r} belongs to no store: "
                    "say where to, save('NAME.faiss')"
                )
        else:
            target = Path(path)
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
        """Read an index back, and check that it is whole and still belongs to its store.

        Warns when the store has rows that the index lacks (`missing_rows`).

        Args:
            source: a store, its folder, or the path of an index file.
            layer: which layer's, for a store; may be left out when there is only one index.
            verify: compare the file's SHA-256, which reads all of it. By default only a file of
                at most 64 MiB is compared; of a larger one, its size and what it says of itself.
            mmap: read rows from the file as they are needed, so that loading takes milliseconds
                and memory is shared between processes; else read all now.

        Raises:
            LayerNotFound: the store has no such layer.
            VectorIndexError: missing, truncated, altered, made by a newer version, or built from
                another store than the one now there.
        """
        path, store = locate(source, layer)
        index = cls._load(path, store, verify, mmap)
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
        """The saved index of a layer if it is whole, current and of that metric; else a new one.

        Args:
            layer: as `store.layer(name)` gives it.
            metric: `cosine`, `l2` or `ip`, see `Hits`; None for that of the saved one, and cosine
                for a new one.
            keep: save a new one, unless a good one of another metric is there. Where it cannot be
                saved, as in a read-only store, a warning says so.

        Raises:
            VectorIndexError: no row to index.
        """
        path = index_path(layer.store.path, layer.name)
        found = None
        if path.exists():
            with contextlib.suppress(VectorIndexError):
                found = cls._load(path, layer.store, None, True)
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
            warnings.warn(f"{error}; every search makes it again", stacklevel=3)

    @classmethod
    def _load(cls, path: Path, store: Store | None, verify: bool | None, mmap: bool) -> VectorIndex:
        with held(path):
            return cls._read(path, store, verify, mmap)

    @classmethod
    def _read(cls, path: Path, store: Store | None, verify: bool | None, mmap: bool) -> VectorIndex:
        record = read_record(path, verify=verify)
        kind, space = find_backend(record.backend), space_of(record.metric)
        try:
            engine = kind.load(path, record.dim, space, record.facts, mmap=mmap)
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
        index.path, index._changed = path, False
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
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of `build` that this index was made with."""
        return self.record.settings

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

    def search(self, vectors: npt.ArrayLike, k: int = 10, *, where: Where | None = None) -> Hits:
        """Find the rows nearest to vectors.

        Args:
            vectors: `(Q, dim)`, or one vector `(dim,)`, which is a batch of one.
            k: how many; with fewer rows than that, all of them are returned.
            where: which rows may be found: a condition on the store's images as
                ``store.images.where`` takes it (``"label == 'dog'"``), a mask of bools whose entry
                number i is about id i, or ids. All by default.

        Raises:
            VectorIndexError: wrong width, values that are not finite, `k` below 1, or a filter
                that does not fit.
        """
        try:
            with np.errstate(over="ignore"):  # beyond float32 is infinite, and refused as such
                queries = np.atleast_2d(np.asarray(vectors, np.float32))
        except (TypeError, ValueError) as error:
            raise VectorIndexError(
                f"queries are no table of numbers ({error}): expected (Q, {self.dim})"
            ) from error
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
        return self._search(prepared(queries, self.metric), k, where)

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
            row_id: its id.
            k: how many; with fewer rows than that, all of them are returned.
            exclude_self: leave the row itself out.
            where: which rows may be found; see `search`.

        Raises:
            VectorIndexError: the index has no such row, `k` is below 1, or a filter that does not
                fit.
        """
        row = self._row(row_id)
        hits = self._search(row, _wanted(k) + exclude_self, where)
        if not exclude_self:
            return hits
        keep = np.flatnonzero(hits.ids[0] != row_id)[:k]
        return Hits(hits.ids[:, keep], hits.scores[:, keep])

    def search_image(
        self, model: HookedModel, images: Any, k: int = 10, *, where: Where | None = None
    ) -> Hits:
        """Find the rows nearest to images, seen through the model that made the rows.

        Args:
            model: must have the weights that the store was mined with.
            images: one or several, as `model.images` takes them.
            k: how many; with fewer rows than that, all of them are returned.
            where: which rows may be found; see `search`.

        Raises:
            StoreMismatch: the model is another one.
            VectorIndexError: features that are not finite, or a filter that does not fit.
            ImageError: an image cannot be read.
        """
        from timmscope.models.pooled_features import pooled_features

        if self.record.weights_sha256 is None:
            raise VectorIndexError(
                f"the index of {self.layer!r} was built from an array, so no model can be checked "
                "against it: search by vector"
            )
        owner = f"{self.record.model}, which computed the rows of {self.layer!r}"
        require_weights(model, self.record.weights_sha256, owner)
        pictures = model.images(images)
        rows = pooled_features(model, pictures, self.layer, precision=self.record.precision)
        return self.search(rows, k, where=where)

    def search_objective(
        self,
        objective: Objective | str | int,
        k: int = 10,
        *,
        where: Where | None = None,
        model: HookedModel | None = None,
    ) -> Hits:
        """Find the rows nearest to an objective's direction at this layer, by the index's metric.

        With `ip` scores are the objective's own, but for the offset of a class; with `cosine` rows
        are compared by direction alone. `Store.strongest` ranks by the objective, without an index.

        Args:
            objective: units, directions and classes, their sums and multiples, at this layer.
            k: how many; with fewer rows than that, all of them are returned.
            where: which rows may be found; see `search`.
            model: the store's model; by default loaded where the objective needs it.

        Raises:
            VectorIndexError: the index is of an array, or the objective reads another layer.
            ObjectiveError: it is no linear function of the layer's rows.
        """
        from timmscope.index.linear_form import linear_form

        if self._store is None:
            raise VectorIndexError(
                f"the index of {self.layer!r} belongs to no store: search by vector"
            )
        form = linear_form(objective, self._store, layer=self.layer, model=model)
        if set(form.vectors) != {self.layer}:
            raise VectorIndexError(
                f"{objective} reads {', '.join(form.vectors)}, the index holds rows of {self.layer}"
            )
        return self.search(form.vectors[self.layer], k, where=where)

    def _row(self, row_id: int) -> Rows:
        try:
            return self._backend.rows(np.asarray([row_id], np.int64))
        except KeyError:
            known = self.ids
            raise VectorIndexError(
                f"the index of {self.layer!r} has no row {row_id}: it holds {len(self)} ids from "
                f"{known.min()} to {known.max()}, without images that failed or are not finite"
            ) from None

    def _search(self, queries: Rows, k: int, where: Where | None) -> Hits:
        k = _wanted(k)
        allowed = None if where is None else allowed_ids(where, self.ids, self._store)
        count = min(k, len(self) if allowed is None else len(allowed))
        if not count:
            empty = (len(queries), 0)
            return Hits(np.empty(empty, np.int64), np.empty(empty, np.float32))
        if allowed is not None and len(allowed) == len(self):
            allowed = None
        found = self._backend.search(queries, count, allowed)
        shape, space = (len(queries), count), space_of(self.metric)
        limit = None if self._store is None else self._store.manifest.images.count
        values, ids = checked_found(self.record.backend, found, shape, space, limit)
        if self.metric == "cosine":
            values = np.clip(values, -1, 1)  # rounding of normalised rows
        return Hits(ids, values)


def _wanted(k: int) -> int:
    """Number of neighbours asked for.

    Raises:
        VectorIndexError: it is no whole number, or below 1.
    """
    if not isinstance(k, int | np.integer) or k < 1:
        raise VectorIndexError(f"k is {k}: expected a whole number of at least 1")
    return int(k)
