"""Judges every unit of a layer from statistics that the store has, and one pass over its rows.

The pass gives correlations and class means; where images have labels, a second one measures how
well each unit tells its best class from the rest. Memory depends on the number of units and
classes, not of images: correlations of wide layers are made in blocks, one pass each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from timmscope.progress import task
from timmscope_registry import ParameterError

from .correlation import Correlation, strongest
from .report import UnitReport
from .selectivity import ClassMeans, OneAgainstRest, best_classes

if TYPE_CHECKING:
    from timmscope.store import StoreLayer, UnitStatistics

CORRELATION_BYTES = 256 << 20
"""Largest matrix of correlations kept at a time; a wider layer is read once a block."""
_FLOOR = 0.4
_FLOOR_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class UnitThresholds:
    """From where a unit counts as what.

    Attributes:
        sparse: share of images that a sparse unit fires on, at most.
        saturated: spread of a saturated unit's mean over its mean (standard deviation over
            magnitude), at most.
        ceiling: share of its highest maximum that a saturated unit's median reaches.
        redundant: magnitude of the correlation between redundant units, at least.
        selective: area under the ROC curve of a selective unit's class, at least.
        class_size: images of a class that counts, at least.
    """

    sparse: float = 0.01
    saturated: float = 0.1
    ceiling: float = 0.97
    redundant: float = 0.95
    selective: float = 0.95
    class_size: int = 10


def judge_units(
    layer: StoreLayer,
    where: str | npt.ArrayLike | None = None,
    thresholds: UnitThresholds | None = None,
) -> UnitReport:
    """Judge every unit of a layer; see `UnitReport` for what the words mean.

    Args:
        layer: as `store.layer(name)` gives it.
        where: only these images: a condition (`ImageTable.where`), a mask (N,) or ids.
        thresholds: from where a unit counts as what.

    Raises:
        ParameterError: the condition is wrong, or chooses no image that could be read.
        StoreError: the store is not finished.
        StoreCorrupted: a shard cannot be read.
    """
    limits = thresholds or UnitThresholds()
    chosen = None if where is None else layer.store.images.where(where)
    labels = layer.store.images.labels
    codes = labels.codes if chosen is None else np.where(chosen, labels.codes, -1)
    means = ClassMeans(len(labels.names), layer.channels)
    correlation, partner = np.empty(layer.channels), np.empty(layer.channels, dtype=np.int64)
    maxima, pooled = _statistics(layer, chosen)
    width = max(1, min(layer.channels, CORRELATION_BYTES // (8 * layer.channels)))
    images = 0
    for first in range(0, layer.channels, width):
        block = Correlation(layer.channels, first, min(first + width, layer.channels))
        for ids, rows in _rows(layer, "pooled", chosen, "correlating units"):
            block.update(rows)
            if first == 0:
                means.update(rows, codes[ids])
                images += len(ids)
        span = slice(first, first + width)
        correlation[span], partner[span] = strongest(block.matrix(), first)
    constant = pooled.minimum == pooled.maximum
    correlation[constant], partner[constant] = np.nan, -1
    best, selectivity = best_classes(means.means(limits.class_size), np.nan_to_num(pooled.minimum))
    area = np.full(layer.channels, np.nan)
    if (best >= 0).any():
        largest = np.fmax(np.abs(pooled.minimum), np.abs(pooled.maximum))
        counts = OneAgainstRest(best, np.nan_to_num(largest))
        for ids, rows in _rows(layer, "pooled", chosen, "telling classes apart"):
            counts.update(rows, codes[ids])
        area = counts.areas()
    rectified = _is_rectified(pooled, maxima)
    flags = _flags(pooled, maxima, correlation, area, rectified, limits)
    return UnitReport(
        layer=layer.name,
        images=images,
        labelled=int((codes[layer.store.images.readable] >= 0).sum()),
        rectified=rectified,
        thresholds=limits,
        pooled=pooled,
        maxima=maxima,
        correlation=correlation,
        partner=partner,
        best_class=[labels.names[code] if code >= 0 else None for code in best.tolist()],
        selectivity=selectivity,
        auroc=area,
        prunable=_prunable(flags, partner, pooled.variance),
        **flags,
    )


def _rows(
    layer: StoreLayer, kind: str, chosen: np.ndarray | None, what: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids and rows of the chosen images; shards without one are not read."""
    manifest = layer.store.manifest
    shards = list(range(manifest.shard_count))
    if chosen is not None:
        shards = [n for n in shards if chosen[slice(*manifest.span(n))].any()]
    with task(what, total=len(layer)) as advance:
        for ids, rows in layer.iter_rows(kind, shards=shards):
            advance(len(ids))
            if chosen is not None:
                kept = chosen[ids]
                ids, rows = ids[kept], rows[kept]
            if len(ids):
                yield ids, rows


def _statistics(
    layer: StoreLayer, chosen: np.ndarray | None
) -> tuple[UnitStatistics, UnitStatistics]:
    """Statistics of maxima and means: the store's own, or computed for the chosen images."""
    names = {record.name for record in layer.store.manifest.collectors}
    if chosen is None and "statistics" in names:
        return layer.statistics("max"), layer.statistics("pooled")
    from timmscope.mining.collectors import LayerBatch, Statistics
    from timmscope.store import UnitStatistics

    found = Statistics()
    pairs = zip(
        _rows(layer, "max", chosen, "statistics"),
        _rows(layer, "pooled", chosen, "statistics"),
        strict=True,
    )
    for (ids, maxima), (_, pooled) in pairs:
        rows = {"max": maxima, "pooled": pooled}
        found.update(LayerBatch(layer=layer.name, ids=ids, rows=rows))
    if not len(found.of("max").count):
        raise ParameterError(
            f"no image that could be read is chosen: nothing to say of {layer.name}",
            parameter="where",
        )
    return UnitStatistics.of(found.of("max")), UnitStatistics.of(found.of("pooled"))


def _is_rectified(pooled: UnitStatistics, maxima: UnitStatistics) -> bool:
    """Whether the layer's values have a floor just below zero, as after ReLU, GELU or SiLU."""
    lowest = -_largest(-pooled.minimum, -maxima.minimum)
    return lowest >= -min(_FLOOR, _FLOOR_SHARE * max(_largest(maxima.maximum), 0.0))


def _largest(*columns: np.ndarray) -> float:
    values = np.concatenate(columns)
    return float(np.nanmax(values)) if not np.isnan(values).all() else 0.0


def _flags(
    pooled: UnitStatistics,
    maxima: UnitStatistics,
    correlation: np.ndarray,
    area: np.ndarray,
    rectified: bool,
    limits: UnitThresholds,
) -> dict[str, np.ndarray]:
    some = maxima.count > 0
    if rectified:
        dead = some & (maxima.maximum <= 0)
    else:
        one_mean = pooled.minimum == pooled.maximum
        dead = some & one_mean & (maxima.minimum == maxima.maximum)
    live = some & ~dead
    steady = pooled.std <= limits.saturated * np.abs(pooled.mean)
    median = maxima.quantile(0.5)
    capped = (maxima.maximum > 0) & (median >= limits.ceiling * maxima.maximum)
    return {
        "dead": dead,
        "sparse": live & rectified & (maxima.positive <= limits.sparse),
        "saturated": live & (steady | capped),
        "redundant": live & (np.abs(np.nan_to_num(correlation)) >= limits.redundant),
        "selective": live & (np.nan_to_num(area) >= limits.selective),
        "nonfinite": (pooled.nonfinite > 0) | (maxima.nonfinite > 0),
    }


def _prunable(
    flags: dict[str, np.ndarray], partner: np.ndarray, variance: np.ndarray
) -> np.ndarray:
    """Dead and saturated units, and of redundant ones all but one: that which varies most."""
    gone: np.ndarray = flags["dead"] | flags["saturated"]
    redundant = np.flatnonzero(flags["redundant"] & ~gone)
    # By falling number among equal variances, so that the first of equals stays.
    for unit in sorted(redundant.tolist(), key=lambda unit: (variance[unit], -unit)):
        if not gone[partner[unit]]:
            gone[unit] = True
    return gone
