"""`Rows` is the input of an analysis: one row per image, streamed from a store or an array."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from timmscope.images import LabelTable
from timmscope.progress import task
from timmscope.short_names import short_names
from timmscope.store import StoreLayer, StorePictures
from timmscope_registry import ParameterError

if TYPE_CHECKING:
    from timmscope.images import Images

Batch = tuple[npt.NDArray[np.int64], npt.NDArray[Any]]

_BATCH = 4096
_NAMED = 5
_COMPARED = 4096
"""Number of other rows from whose names those in a caption are told apart."""


class Rows:
    """Finite rows `(n, d)` of the images that an analysis reads, read on demand.

    Args:
        source: a layer of a store, or an array `(n, d)`.
        where: only these images: a condition (for a store, see `ImageTable.where`), a mask or ids.
        location: where the store's images are now, if they have moved.

    Attributes:
        layer: the store's layer; None for an array.
        ids: `(n,)` int64 ids of the images in the store, ascending, without images that mining
            could not read.
        chosen: mask `(N,)` over the store's images that `where` selects; None for all.

    Raises:
        ParameterError: the condition is wrong or selects nothing, or the array is not `(n, d)` of
            real numbers.
        StoreError: the store is not finished or has no pooled rows.
    """

    def __init__(
        self,
        source: StoreLayer | npt.NDArray[Any],
        where: str | npt.ArrayLike | None = None,
        *,
        location: Images | None = None,
    ) -> None:
        self.layer = source if isinstance(source, StoreLayer) else None
        self._where = where
        self._location = location
        if isinstance(source, StoreLayer):
            self._rows: Any = source.pooled
            known = source.store.images.readable
            self.chosen = None if where is None else source.store.images.where(where)
        else:
            _require_vectors(source)
            self._rows = source
            known = np.ones(len(source), bool)
            self.chosen = None if where is None else _mask(where, len(source))
        self.ids = np.flatnonzero(known if self.chosen is None else known & self.chosen)
        if not len(self.ids):
            chosen = "" if where is None else " that meets the condition"
            raise ParameterError(
                f"{self.title} has no image{chosen} that could be read", parameter="where"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"<Rows {self.title}: {len(self)} x {self.dim}>"

    @property
    def dim(self) -> int:
        """Length of a row."""
        return int(self._rows.shape[1])

    @property
    def title(self) -> str:
        """Short description of the rows: `blocks.4 of demo.scope`, or `the array`."""
        if self.layer is None:
            return "the array"
        return f"{self.layer.name} of {self.layer.store.path.name}"

    @property
    def facts(self) -> dict[str, Any]:
        """Facts for a result's provenance: store, layer, condition, number of images.

        The path of the store's metadata and the location of moved images are included.
        """
        where = self._where if isinstance(self._where, str | None) else f"{len(self)} images"
        found: dict[str, Any] = {"images": len(self), "where": where}
        if self.layer is not None:
            store = self.layer.store
            found |= {"store": str(store.path), "layer": self.layer.name}
            if store.images.metadata is not None:
                found["metadata"] = str(store.images.metadata.path)
        if isinstance(self._location, str | PathLike):
            found["location"] = str(self._location)
        return found

    # Values

    def batches(
        self, what: str = "reading rows", size: int = _BATCH
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
        """Yield ids `(b,)` and rows `(b, d)` in order, in bounded memory, reporting progress.

        Args:
            what: text of the progress bar.
            size: largest number of rows per batch; batches are smaller at the end of a shard, and
                where some of their images are not chosen.

        Raises:
            ParameterError: rows hold NaN or infinite values; the message counts them and names a
                few.
        """
        with task(what, total=len(self)) as advance:
            for ids, rows in _read_ahead(self._unchecked_batches(size)):
                if not _finite(rows):
                    raise self._nonfinite_error(size)
                yield ids, rows
                advance(len(ids))

    def take(self, ids: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return rows `(len(ids), d)` of some images, by id, in the order of `ids`.

        Raises:
            ParameterError: some of them hold NaN or infinite values.
        """
        rows: npt.NDArray[Any] = np.asarray(self._rows[np.asarray(ids, np.int64)])
        if not _finite(rows):
            raise self._nonfinite_error(_BATCH)
        return rows

    def sample(self, count: int, seed: int) -> npt.NDArray[np.int64]:
        """Return ids of `count` images drawn without replacement, ascending; at most all images."""
        if count >= len(self):
            return self.ids
        generator = np.random.default_rng(seed % (1 << 32))  # seeds may be negative
        drawn = generator.choice(len(self), count, replace=False)
        return np.sort(self.ids[drawn])

    def require(self, count: int, what: str, parameter: str) -> None:
        """Refuse fewer rows than `what` needs.

        Raises:
            ParameterError: there are fewer.
        """
        if len(self) < count:
            raise ParameterError(
                f"{what} needs at least {count} images, {self.title} has {len(self)}"
                + ("" if self._where is None else " that meet the condition"),
                parameter=parameter,
            )

    # Images

    @cached_property
    def labels(self) -> LabelTable:
        """Label of each of the `n` images; None for images without one."""
        if self.layer is None:
            return LabelTable([None] * len(self))
        return self.layer.store.images.labels.take(self.ids)

    def column(self, name: str) -> LabelTable | npt.NDArray[np.float64]:
        """Return a column of the `n` images: labels if it holds text, `(n,)` if numbers.

        Args:
            name: a column of the store's images or of its metadata; a missing label is None, a
                missing number is NaN.

        Raises:
            ParameterError: there is no such column, or the rows come from an array.
            StoreError: the store is not finished.
        """
        if self.layer is None:
            raise ParameterError(
                "an array has no columns of images: pass a store", parameter="source"
            )
        found = self.layer.store.images.column(name)
        return found.take(self.ids) if isinstance(found, LabelTable) else found[self.ids]

    def names(self, ids: npt.ArrayLike) -> list[str]:
        """Return names of images: their paths in the store, `row 7` in an array."""
        wanted = np.asarray(ids, np.int64)
        if self.layer is None:
            return [f"row {image}" for image in wanted.tolist()]
        return self.layer.store.images.paths.take(wanted)

    def short_names(self, ids: npt.ArrayLike) -> list[str]:
        """Return as much of `names` as tells them apart among these rows, for captions."""
        step = -(-len(self.ids) // _COMPARED) or 1
        return short_names(self.names(ids), self.names(self.ids[::step]))

    @property
    def has_pictures(self) -> bool:
        """Whether there are images to show: not for an array or a store of images in memory."""
        if self.layer is None:
            return False
        return bool(self._location or self.layer.store.manifest.images.location)

    @cached_property
    def pictures(self) -> StorePictures:
        """The images, decoded again.

        Raises:
            ParameterError: the rows come from an array.
            ImageError: the images no longer exist.
            StoreError: the images were in memory, and no location was given.
        """
        if self.layer is None:
            raise ParameterError("an array has no images to show: pass a store", parameter="source")
        return StorePictures(self.layer.store, self._location)

    def warn_of_lost(self) -> None:
        """Warn about images that `pictures` could not read."""
        lost = sorted(self.pictures.lost) if "pictures" in vars(self) else []
        if lost:
            first = ", ".join(self.names(lost[:_NAMED]))
            more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
            warnings.warn(
                f"{len(lost)} images of {self.title} can no longer be read and are left out or "
                f"grey in pictures: {first}{more}",
                stacklevel=3,
            )

    def _unchecked_batches(self, size: int) -> Iterator[Batch]:
        if self.layer is None:
            for start in range(0, len(self), size):
                ids = self.ids[start : start + size]
                whole = len(self) == len(self._rows)
                wanted = slice(start, start + size) if whole else ids
                yield ids, np.asarray(self._rows[wanted])
            return
        manifest = self.layer.store.manifest
        shards = list(range(manifest.shard_count))
        if self.chosen is not None:
            shards = [n for n in shards if self.chosen[slice(*manifest.span(n))].any()]
        for ids, rows in self.layer.iter_rows("pooled", size, shards=shards):
            if self.chosen is None:
                yield ids, rows
            elif (kept := self.chosen[ids]).any():
                yield ids[kept], rows[kept]

    def _nonfinite_error(self, size: int) -> ParameterError:
        """Count the rows with NaN or infinite values and return the error about them."""
        found: list[int] = []
        for ids, rows in self._unchecked_batches(size):
            found += ids[~np.isfinite(rows).all(1)].tolist()
        first = ", ".join(self.names(found[:_NAMED]))
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        hint = (
            f'leave them out, as in where="id not in {found}"'
            if self.layer is not None and len(found) <= _NAMED
            else "mine that layer again in float32"
            if self.layer is not None and self.layer.store.manifest.precision != "float32"
            else "leave them out with where=, or choose another layer"
            if self.layer is not None
            else "leave them out"
        )
        return ParameterError(
            f"{len(found)} of {len(self)} rows of {self.title} hold NaN or infinite values: "
            f"{first}{more}; {hint}",
            parameter="source",
        )


def _read_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the batches; a thread reads the next one while the caller works on the current one."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            yield batch


def _finite(rows: npt.NDArray[Any]) -> bool:
    """Whether all values are finite; a finite sum proves it, but the sum may overflow."""
    if rows.dtype.kind != "f":
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        total = rows.sum(dtype=rows.dtype)
    return bool(np.isfinite(total)) or bool(np.isfinite(rows).all())


def _require_vectors(array: npt.NDArray[Any]) -> None:
    """Refuse an array that is not `(n, d)` of real numbers with d at least 1."""
    if array.ndim != 2 or not array.shape[1]:
        raise ParameterError(
            f"the array has shape {array.shape}, expected (n, d): one row of values per image",
            parameter="source",
        )
    if array.dtype.kind not in "biuf":
        raise ParameterError(
            f"the array holds {array.dtype}, expected real numbers", parameter="source"
        )


def _mask(where: str | npt.ArrayLike, count: int) -> npt.NDArray[np.bool_]:
    if isinstance(where, str):
        raise ParameterError(
            "a condition as text needs a store; for an array give a mask or ids",
            parameter="where",
        )
    given = np.asarray(where)
    if given.dtype == bool and given.shape == (count,):
        return given
    whole = given.dtype.kind in "iu" or not given.size
    ids = given.astype(np.int64) if whole and given.ndim == 1 else None
    if ids is None or (len(ids) and (ids.min() < 0 or ids.max() >= count)):
        raise ParameterError(
            f"where is neither a mask of {count} values nor ids below {count}", parameter="where"
        )
    mask = np.zeros(count, bool)
    mask[ids] = True
    return mask
