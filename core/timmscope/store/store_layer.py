"""`StoreLayer` reads one layer of a store: rows, each unit's strongest images, statistics."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from timmscope.collectors.registered import STATISTICS_ID
from timmscope_registry import StoreError
from timmscope_registry.html_table import html_table

from .manifest import LayerRecord
from .rows import RowArray
from .shards import MERGED, READ, layer_group
from .top_k import TopEntry, top_entries

if TYPE_CHECKING:
    from timmscope.collectors import Statistics
    from timmscope.collectors.statistics import Moments
    from timmscope.objectives import Objective
    from timmscope.objectives.match import Distance

    from .store import Store


@dataclass(frozen=True, kw_only=True, repr=False)
class UnitStatistics:
    """Statistics of every unit of a layer; arrays (C,), over the images that could be read.

    Attributes:
        count: number of finite values; only these count below.
        nonfinite: number of values that are NaN or infinite.
        mean: mean (NaN without values).
        variance: population variance.
        minimum: smallest value.
        maximum: largest value.
        zeros: share of values that are exactly zero, from 0 to 1.
        positive: share of values above zero, from 0 to 1.
    """

    count: np.ndarray
    nonfinite: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray
    zeros: np.ndarray
    positive: np.ndarray
    _quantile: Callable[[float], np.ndarray]

    @classmethod
    def of(cls, moments: Moments) -> UnitStatistics:
        """Compute the statistics from a collector's moments of one kind of row."""
        some = moments.count > 0
        count = np.maximum(moments.count, 1)
        return cls(
            count=moments.count,
            nonfinite=moments.nonfinite,
            mean=np.where(some, moments.mean, np.nan),
            variance=np.where(some, moments.m2 / count, np.nan),
            minimum=np.where(some, moments.min, np.nan),
            maximum=np.where(some, moments.max, np.nan),
            zeros=np.where(some, moments.zeros / count, np.nan),
            positive=np.where(some, moments.sketch.positive() / count, np.nan),
            _quantile=moments.sketch.quantile,
        )

    def __repr__(self) -> str:
        most = int(self.count.max(initial=0))
        return f"<UnitStatistics of {len(self.count)} units over up to {most} values each>"

    def _repr_html_(self) -> str:
        columns = {
            "mean": self.mean,
            "std": self.std,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "zeros": self.zeros,
            "positive": self.positive,
            "nonfinite": self.nonfinite,
        }
        rows = (
            {"unit": unit} | {name: values[unit].item() for name, values in columns.items()}
            for unit in range(len(self.count))
        )
        return html_table(repr(self), rows, len(self.count))

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation."""
        return np.asarray(np.sqrt(self.variance))

    def quantile(self, q: float) -> np.ndarray:
        """Return the order statistic number floor(q * (count - 1)) of every unit, within 1.6 %."""
        return np.asarray(np.clip(self._quantile(q), self.minimum, self.maximum))


_TOP = {"values": "f", "ids": "i", "positions": "i"}
"""Arrays of the lists of strongest images, and the kind of their values."""


class StoreLayer:
    """One layer of a store.

    Attributes:
        store: the store.
        record: name, layout, shape, grid and stride.
    """

    def __init__(self, store: Store, record: LayerRecord) -> None:
        self.store = store
        self.record = record

    def __repr__(self) -> str:
        return f"<StoreLayer {self.name} of {self.store.path.name}: {len(self)} x {self.channels}>"

    def __len__(self) -> int:
        return len(self.store)

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.record.name

    @property
    def channels(self) -> int:
        """Number of units."""
        return self.record.channels

    @property
    def pooled(self) -> RowArray:
        """Spatial mean of every image and unit, (N, C) float32."""
        return self.rows("pooled")

    @property
    def maximum(self) -> RowArray:
        """Spatial maximum of every image and unit, (N, C) float32."""
        return self.rows("max")

    @property
    def argmax(self) -> RowArray:
        """Cell of that maximum, (N, C) int32, row * width + column; -1 where there is none."""
        return self.rows("argmax")

    @property
    def maps(self) -> RowArray:
        """Full activation maps, (N, C, h, w) float32, if the pass kept them for this layer."""
        return self.rows("maps")

    def rows(self, kind: str) -> RowArray:
        """Return the rows of a kind, which may be a plugin's.

        Raises:
            StoreError: the pass did not keep that kind at this layer, or is not finished.
        """
        self._check_kind(kind)
        self.store.files.require_all()
        return self._row_array(kind)

    def iter_rows(
        self,
        kind: str = "pooled",
        batch: int = 4096,
        *,
        readable_only: bool = True,
        shards: Iterable[int] | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield image ids (n,) int64 and their rows (n, …), in order, in bounded memory.

        Args:
            kind: as for `rows`.
            batch: most rows at a time; a batch never spans two shards.
            readable_only: leave out images that could not be read.
            shards: numbers of the shards to read; by default all. In an unfinished store or a part
                only those in ``store.manifest.shards`` can be read.

        Raises:
            StoreError: as for `rows`.
        """
        manifest, files = self.store.manifest, self.store.files
        numbers = range(manifest.shard_count) if shards is None else sorted(shards)
        self._check_kind(kind)
        files.require(numbers)
        if not numbers:
            return
        rows = self._row_array(kind)
        for number in numbers:
            start, stop = manifest.span(number)
            some_bad = readable_only and manifest.shards[number].unreadable > 0
            if some_bad:
                readable = files.column(number, "status") == READ
            for low in range(start, stop, batch):
                high = min(low + batch, stop)
                ids, part = np.arange(low, high), rows[low:high]
                if some_bad:
                    kept = readable[low - start : high - start]
                    ids, part = ids[kept], part[kept]
                yield ids, part

    def match(self, ids: int | Sequence[int], *, distance: Distance = "squared") -> Objective:
        """Return the objective that compares this layer's pooled activation with a stored row.

        It accepts only the model that the store was mined with.

        Args:
            ids: id of an image of the store; with several, one target per image.
            distance: `squared`, minus the relative squared error, or `cosine`.

        Raises:
            StoreError: the store has no such image, or its row is not finite.
            ObjectiveError: the row is zero.
        """
        from timmscope.models.weights_digest import activations_digest
        from timmscope.objectives.match import match_rows

        given = ids if isinstance(ids, Sequence) else [ids]
        numbers = [operator.index(number) for number in given]
        try:
            rows = self.pooled[numbers].astype(np.float64)
        except IndexError as error:
            raise StoreError(f"{error}: {self.store.path.name} has no such row") from None
        if not np.isfinite(rows).all():
            bad = numbers[int(np.flatnonzero(~np.isfinite(rows).all(1))[0])]
            raise StoreError(
                f"the row of image {bad} at {self.name} in {self.store.path.name} is not finite, "
                "or the image could not be read: choose another image"
            )
        model = self.store.manifest.model
        names = [f"{self.store.path}[{number}]" for number in numbers]
        by = (model.id, activations_digest(model.weights_sha256, model.defences))
        return match_rows(self.name, rows, distance=distance, names=names, computed_by=by)

    def top(
        self, unit: int, k: int = 9, *, where: str | npt.ArrayLike | None = None
    ) -> list[TopEntry]:
        """Return the images with the highest maximum of a unit, best first, ties by image id.

        This is instant if the list that the pass kept has k of the images; otherwise the rows are
        read, in bounded memory.

        Args:
            unit: number of the channel.
            k: number of images.
            where: only these images: a condition, a mask (N,) or ids; see `ImageTable.where`.

        Raises:
            StoreError: there is no such unit, or the store is not finished.
            ParameterError: the condition is wrong.
        """
        if not 0 <= unit < self.channels:
            raise StoreError(
                f"layer {self.name} has units 0 to {self.channels - 1}, there is no unit {unit}"
            )
        return top_entries(self, [unit], k, where)[0]

    def statistics(self, kind: str = "max") -> UnitStatistics:
        """Return the statistics of all units' spatial maxima (``max``) or means (``pooled``).

        Raises:
            StoreError: `kind` is neither, the pass kept no statistics, or is not finished.
        """
        if kind not in ("max", "pooled"):
            raise StoreError(f"a store has statistics of 'max' and 'pooled', not of {kind!r}")
        collector = cast("Statistics", self.store.collector(self.name, STATISTICS_ID))
        moments = collector.of(kind)
        if len(moments.count) != self.channels:
            raise self.store.files.corrupted(
                MERGED, f"statistics of {len(moments.count)} units instead of {self.channels}"
            )
        return UnitStatistics.of(moments)

    def _check_kind(self, kind: str) -> None:
        if kind not in self.record.kinds:
            raise StoreError(
                f"{self.store.path.name} keeps no {kind!r} of {self.name}, only "
                f"{', '.join(self.record.kinds)}; mine again with it"
            )

    def _row_array(self, kind: str) -> RowArray:
        """Return the rows; those of shards that are missing raise `StoreError` when read."""
        column = self.record.kinds[kind]
        return RowArray(self.store.files, self.name, kind, column.shape, np.dtype(column.dtype))

    def kept_top(self, collector: str, unit: int) -> dict[str, np.ndarray]:
        """Return the list of a unit's strongest images that the pass kept.

        Returns:
            ``values``, ``ids`` and ``positions``, (n,); an id of -1 is an empty place.
        """
        merged = self.store.manifest.merged
        if merged is None:
            whole = self.store.collector(self.name, collector).state()
            return {name: whole[name][unit] for name in _TOP}
        with self.store.files.open(MERGED, merged) as file:
            group = f"{collector}/{layer_group(self.name)}"
            rows = {name: file.read(f"{group}/{name}", unit, unit + 1) for name in _TOP}
            for name, kind in _TOP.items():
                if rows[name].shape != (1, rows["ids"].size) or rows[name].dtype.kind != kind:
                    raise ValueError(f"{name} is {rows[name].dtype}{rows[name].shape}")
            if rows["ids"].size and not -1 <= rows["ids"].min() <= rows["ids"].max() < len(self):
                raise ValueError(f"ids of images beyond {len(self) - 1}")
            cells = math.prod(self.record.grid or (rows["positions"].max(initial=0) + 1, 1))
            if rows["positions"].max(initial=-1) >= cells:
                raise ValueError(f"cells beyond {cells - 1}")
            return {name: row[0] for name, row in rows.items()}
