"""`judge_units` judges every unit of a layer from the store's statistics and a pass over its rows.

The pass gives correlations and class means; where images have labels, a second one measures how
well each unit tells its best class from the rest. Memory depends on the number of units and
classes, not of images: correlations of wide layers are computed in blocks, one pass each. No torch
is imported.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from timmscope.results import Provenance
from timmscope.store import StoreLayer
from timmscope_registry import ParameterError

from .correlation import Correlation, strongest
from .selectivity import ClassMeans, OneAgainstRest, best_classes
from .unit_report import QUANTILES, UnitReport
from .unit_rows import LABEL, UnitRows

if TYPE_CHECKING:
    from timmscope.store import UnitStatistics
    from timmscope.techniques import Rows

CORRELATION_BYTES = 256 << 20
"""Largest matrix of correlations kept at a time; a wider layer is read once per block."""
_CORRELATED = 3
"""Images that a correlation with numbers needs at least: that of any two is 1 or -1."""
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
    layer: StoreLayer | Rows,
    where: str | npt.ArrayLike | None = None,
    thresholds: UnitThresholds | None = None,
    *,
    by: str | None = None,
) -> UnitReport:
    """Judge every unit of a layer; see `UnitReport` for what the words mean.

    Args:
        layer: as `store.layer(name)` gives it, or the rows that a technique is given.
        where: only these images of a layer: a condition (`ImageTable.where`), a mask (N,) or ids.
        thresholds: from where a unit counts as what.
        by: column in place of the labels, as in ``folder``, ``width`` or one of the metadata: units
            may be selective of its texts, or correlate with its numbers.

    Raises:
        ParameterError: the condition is wrong, or chooses no image that could be read; there is no
            such column, or the images have one value of it, or fewer than three have a number.
        StoreError: the store is not finished.
        StoreCorrupted: a shard cannot be read.
    """
    if isinstance(layer, StoreLayer):
        return judge_rows(UnitRows.of_layer(layer, where, by), thresholds, by=by)
    return judge_rows(UnitRows.of_rows(layer, by), thresholds, by=by)


def judge_rows(
    source: UnitRows, thresholds: UnitThresholds | None = None, *, by: str | None = None
) -> UnitReport:
    """Judge units by rows of any origin; arguments and errors as for `judge_units`."""
    limits = thresholds or UnitThresholds()
    units, codes, numbers = source.channels, source.codes, source.numbers
    if numbers is None:
        labelled = codes[source.readable]
        labelled = labelled[labelled >= 0]
        sizes = np.bincount(labelled, minlength=len(source.names))
        unjudged = _unjudged(sizes, limits.class_size, by or LABEL)
    else:
        labelled = numbers[source.readable]
        labelled = labelled[np.isfinite(labelled)]
        unjudged = _unjudged(np.unique(labelled, return_counts=True)[1], 1, by or LABEL)
        if not unjudged and len(labelled) < _CORRELATED:
            unjudged = f"only {len(labelled)} images have a {by}, and any two are on a line"
    if unjudged and by is not None:
        raise ParameterError(f"nothing to tell apart: {unjudged}", parameter="context")
    means = ClassMeans(len(source.names), units)
    context = Correlation(units + 1, units)  # of the numbers, as one more unit, with all
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
        correlation[span], partner[span] = strongest(block.matrix(), first)
    constant = pooled.minimum == pooled.maximum
    correlation[constant], partner[constant] = np.nan, -1
    with_context = np.full(units, np.nan) if numbers is None else context.matrix()[0, :units]
    with_context[constant] = np.nan
    best, selectivity = best_classes(means.means(limits.class_size), np.nan_to_num(pooled.minimum))
    area = np.full(units, np.nan)
    if (best >= 0).any():
        counts = OneAgainstRest(best, np.nan_to_num(pooled.minimum), np.nan_to_num(pooled.maximum))
        for ids, rows in source.stream("pooled", "telling classes apart"):
            counts.update(rows, codes[ids])
        area = counts.areas()
    rectified = _is_rectified(pooled, maxima)
    flags = _flags(pooled, maxima, correlation, area, rectified, limits)
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


def _unjudged(sizes: np.ndarray, least: int, by: str) -> str:
    """Why no unit can be selective, in a few words; empty where some can."""
    some = int((sizes > 0).sum())
    if not some:
        return f"no image has a {by}"
    if some == 1:
        return f"all images that have a {by} have the same one"
    if (sizes >= least).sum() < 2:
        return f"no two values of {by} have {least} images"
    return ""


def _statistics(source: UnitRows) -> tuple[UnitStatistics, UnitStatistics]:
    """Statistics of maxima and means, from the rows."""
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
            f"no image that could be read is chosen: nothing to say of {source.name}",
            parameter="where",
        )
    return UnitStatistics.of(found.of("max")), UnitStatistics.of(found.of("pooled"))


def _columns(found: UnitStatistics) -> list[np.ndarray]:
    """Rows of `UnitReport.statistics`."""
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
