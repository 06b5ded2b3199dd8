"""`judge_units` judges every unit of a layer from the store's statistics and a pass over its rows.

The pass computes correlations and class means. If images have labels, a second pass measures how
well each unit separates its best class from the others. Memory depends on the number of units and
classes, not of images: correlations of wide layers are computed in blocks, with one pass per block.
Torch is not imported.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from timmscope.results import Provenance
from timmscope.store import StoreLayer
from timmscope_registry import ParameterError

from .correlation import Correlation, strongest_partners
from .selectivity import ClassMeans, OneAgainstRest, best_classes
from .unit_report import QUANTILES, UnitReport
from .unit_rows import LABEL, UnitRows

if TYPE_CHECKING:
    from timmscope.store import UnitStatistics
    from timmscope.techniques import Rows

CORRELATION_BYTES = 256 << 20
"""Largest block of the correlation matrix; a wider layer is read once per block."""
_MIN_NUMBERS = 3
"""Fewest images for a correlation with numbers; of two images it is always 1 or -1."""
_FLOOR = 0.4
_FLOOR_SHARE = 0.1
"""A rectified layer has no value below -0.4, or below -0.1 times its largest value."""


@dataclass(frozen=True, kw_only=True)
class UnitThresholds:
    """Thresholds of the flags of units.

    Attributes:
        sparse: largest share of images on which a sparse unit fires.
        saturated: largest standard deviation of a saturated unit's mean, relative to the mean's
            magnitude.
        ceiling: smallest median of a saturated unit's maxima, relative to their largest value.
        redundant: smallest magnitude of the correlation between redundant units.
        selective: smallest area under the ROC curve of a selective unit's class.
        class_size: fewest images of a class that counts.
    """

    sparse: float = 0.01
    saturated: float = 0.1
    ceiling: float = 0.97
    redundant: float = 0.95
    selective: float = 0.95
    class_size: int = 10


def judge_units(
    layer: StoreLayer | Rows,
    where: str | npt.ArrayLike | None = None,
    thresholds: UnitThresholds | None = None,
    *,
    by: str | None = None,
) -> UnitReport:
    """Judge every unit of a layer; `UnitReport` defines the flags.

    Args:
        layer: layer from `store.layer(name)`, or the rows that a technique gets.
        where: only these images of a layer: a condition (`ImageTable.where`), a mask (N,) or ids.
        thresholds: thresholds of the flags.
        by: column to use instead of the labels, such as ``folder``, ``width`` or a column of the
            metadata: units may be selective for its texts, or correlate with its numbers.

    Raises:
        ParameterError: the condition is wrong, or selects no readable image; there is no such
            column, or all images have the same value, or fewer than three have a number.
        StoreError: the store is not finished.
        StoreCorrupted: a shard cannot be read.
    """
    if isinstance(layer, StoreLayer):
        return judge_rows(UnitRows.of_layer(layer, where, by), thresholds, by=by)
    return judge_rows(UnitRows.of_rows(layer, by), thresholds, by=by)


def judge_rows(
    source: UnitRows, thresholds: UnitThresholds | None = None, *, by: str | None = None
) -> UnitReport:
    """Judge units by rows from any source; arguments and errors as for `judge_units`."""
    limits = thresholds or UnitThresholds()
    units, codes, numbers = source.channels, source.codes, source.numbers
    if numbers is None:
        labelled = codes[source.readable]
        labelled = labelled[labelled >= 0]
        sizes = np.bincount(labelled, minlength=len(source.names))
        unjudged = _why_unjudged(sizes, limits.class_size, by or LABEL)
    else:
        labelled = numbers[source.readable]
        labelled = labelled[np.isfinite(labelled)]
        unjudged = _why_unjudged(np.unique(labelled, return_counts=True)[1], 1, by or LABEL)
        if not unjudged and len(labelled) < _MIN_NUMBERS:
            unjudged = f"only {len(labelled)} images have a {by}, and a correlation needs 3"
    if unjudged and by is not None:
        raise ParameterError(f"nothing to compare units with: {unjudged}", parameter="context")
    means = ClassMeans(len(source.names), units)
    context = Correlation(units + 1, units)  # the numbers are an additional unit
    correlation, partner = np.empty(units), np.empty(units, dtype=np.int64)
    maxima, pooled = source.known() or _statistics(source)
    width = max(1, min(units, CORRELATION_BYTES // (8 * units)))
    images = 0
    for first in range(0, units, width):
        block = Correlation(units, first, min(first + width, units))
        for ids, rows in source.stream("pooled", "correlating units"):
            block.update(rows)
            if first == 0:
                means.update(rows, codes[ids])
                if numbers is not None:
                    context.update(np.column_stack([rows, numbers[ids]]))
                images += len(ids)
        span = slice(first, first + width)
        correlation[span], partner[span] = strongest_partners(block.matrix(), first)
    constant = pooled.minimum == pooled.maximum
    correlation[constant], partner[constant] = np.nan, -1
    with_context = np.full(units, np.nan) if numbers is None else context.matrix()[0, :units]
    with_context[constant] = np.nan
    best, selectivity = best_classes(means.means(limits.class_size), np.nan_to_num(pooled.minimum))
    area = np.full(units, np.nan)
    if (best >= 0).any():
        counts = OneAgainstRest(best, np.nan_to_num(pooled.minimum), np.nan_to_num(pooled.maximum))
        for ids, rows in source.stream("pooled", "measuring selectivity"):
            counts.update(rows, codes[ids])
        area = counts.areas()
    rectified = _is_rectified(pooled, maxima)
    flags: dict[str, Any] = _flags(pooled, maxima, correlation, area, rectified, limits)
    return UnitReport(
        provenance=Provenance.now(
            technique="timmscope:unit-report",
            family="representation",
            parameters={"context": by, **asdict(limits)},
            model=None,
            weights_sha256=None,
            seed=0,
            call=source.facts,
        ),
        layer=source.name,
        images=images,
        labelled=len(labelled),
        by=by or LABEL,
        unjudged=unjudged,
        rectified=rectified,
        thresholds=asdict(limits),
        statistics=np.stack([*_columns(pooled), *_columns(maxima)]).astype(np.float64),
        fires=maxima.positive,
        count=pooled.count,
        nonfinite=np.maximum(pooled.nonfinite, maxima.nonfinite),
        correlation=correlation,
        partner=partner,
        best_class=[source.names[code] if code >= 0 else None for code in best.tolist()],
        selectivity=selectivity,
        auroc=area,
        context_correlation=with_context,
        prunable=_prunable(flags, partner, pooled.variance),
        **flags,
    )


def _why_unjudged(sizes: np.ndarray, least: int, by: str) -> str:
    """Return why selectivity cannot be judged, in a few words; empty if it can."""
    values = int((sizes > 0).sum())
    if not values:
        return f"no image has a {by}"
    if values == 1:
        return f"all images that have a {by} have the same one"
    if (sizes >= least).sum() < 2:
        return f"no two values of {by} have {least} images"
    return ""


def _statistics(source: UnitRows) -> tuple[UnitStatistics, UnitStatistics]:
    """Compute the statistics of maxima and means from the rows."""
    from timmscope.collectors import LayerBatch, Statistics
    from timmscope.store import UnitStatistics

    found = Statistics()
    pairs = zip(
        source.stream("max", "statistics"), source.stream("pooled", "statistics"), strict=True
    )
    for (ids, maxima), (_, pooled) in pairs:
        rows = {"max": maxima, "pooled": pooled}
        found.update(LayerBatch(layer=source.name, ids=ids, rows=rows))
    if not len(found.of("max").count):
        raise ParameterError(
            f"no image that could be read is chosen, so {source.name} has no statistics",
            parameter="where",
        )
    return UnitStatistics.of(found.of("max")), UnitStatistics.of(found.of("pooled"))


def _columns(found: UnitStatistics) -> list[np.ndarray]:
    """Return rows of `UnitReport.statistics`."""
    moments = [found.mean, found.std, found.minimum, found.maximum, found.zeros]
    return [*moments, *map(found.quantile, QUANTILES)]


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
    measured = maxima.count > 0
    if rectified:
        dead = measured & (maxima.maximum <= 0)
    else:
        constant_mean = pooled.minimum == pooled.maximum
        dead = measured & constant_mean & (maxima.minimum == maxima.maximum)
    live = measured & ~dead
    steady = pooled.std <= limits.saturated * np.abs(pooled.mean)
    median = maxima.quantile(0.5)
    at_ceiling = (maxima.maximum > 0) & (median >= limits.ceiling * maxima.maximum)
    return {
        "dead": dead,
        "sparse": live & rectified & (maxima.positive <= limits.sparse),
        "saturated": live & (steady | at_ceiling),
        "redundant": live & (np.abs(np.nan_to_num(correlation)) >= limits.redundant),
        "selective": live & (np.nan_to_num(area) >= limits.selective),
    }


def _prunable(
    flags: dict[str, np.ndarray], partner: np.ndarray, variance: np.ndarray
) -> np.ndarray:
    """Select dead and saturated units, and redundant units whose partner varies more and stays."""
    pruned: np.ndarray = flags["dead"] | flags["saturated"]
    redundant = np.flatnonzero(flags["redundant"] & ~pruned)
    # Units with equal variances go in descending order, so that the first of them stays.
    for unit in sorted(redundant.tolist(), key=lambda unit: (variance[unit], -unit)):
        if not pruned[partner[unit]]:
            pruned[unit] = True
    return pruned
