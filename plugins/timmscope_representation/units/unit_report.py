"""`JudgeUnits` finds the units of a layer that do nothing, repeat others, or tell classes apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import Field

from timmscope import (
    ParameterError,
    RepresentationTechnique,
    Rows,
    UnitReport,
    UnitThresholds,
    judge_units,
)

_FEWEST = 3
"""Rows: any two units of two rows correlate fully."""
_LARGEST = 3.4e38
"""About the largest number of float32, in which extremes and quantiles are counted."""


class JudgeUnits(RepresentationTechnique):
    """Every unit of a layer judged over a data set, as a table, CSV and figure.

    Dead units never fire. Saturated ones are always on: they hardly depend on the image. Sparse
    ones fire on few images. Redundant ones correlate (Pearson) with another unit. Selective ones
    tell their best class from all other images, by the area under the ROC curve; beside it stands
    the selectivity index of Morcos et al. (ICLR 2018). With a `context`, any column takes the place
    of labels: a unit may be tied to a camera or a place by its texts, or to brightness or a year by
    Pearson's correlation with its numbers. Dead and saturated units could be pruned, and redundant
    ones whose partner stays and varies more.

    An array's rows count as both mean and maximum of their images.
    """

    context: str | None = Field(default=None, min_length=1)
    """Column that takes the place of labels: `folder`, `width`, or one of the metadata."""
    sparse: float = Field(default=UnitThresholds.sparse, ge=0, le=1)
    """Share of images that a sparse unit fires on, at most."""
    saturated: float = Field(default=UnitThresholds.saturated, ge=0)
    """Standard deviation of a saturated unit's mean over the mean's magnitude, at most."""
    ceiling: float = Field(default=UnitThresholds.ceiling, ge=0, le=1)
    """Share of its highest maximum that a saturated unit's median reaches."""
    redundant: float = Field(default=UnitThresholds.redundant, ge=0, le=1)
    """Magnitude of the correlation of redundant units, at least."""
    selective: float = Field(default=UnitThresholds.selective, ge=0, le=1)
    """Area under the ROC curve of a selective unit, at least."""
    class_size: int = Field(default=UnitThresholds.class_size, ge=1)
    """Images of a class that counts, at least."""

    def analyse(self, source: Rows, images: Any) -> UnitReport:
        """The report on a store's layer, or on an array's columns; takes no query images."""
        if images is not None:
            raise ParameterError(f"{self.title()} takes no query images", parameter="images")
        if self.context is not None:
            self.layer_of(source)
        source.require(_FEWEST, "a report on units", "where")
        limits = UnitThresholds(**self.model_dump(exclude={"context"}))
        report = judge_units(source, thresholds=limits, by=self.context)
        if report.counts["nonfinite"]:
            for _ in source.batches("looking for NaN and infinite values"):  # which refuses them
                pass
        lowest, highest = report.column("mean_min"), report.column("max_max")
        if (largest := float(max(highest.max(), -lowest.min()))) > _LARGEST:
            raise ParameterError(
                f"{source.title} holds values up to {largest:.2g}, beyond float32's range: scale "
                "them down",
                parameter="source",
            )
        if (report.column("mean_max") == lowest).all() and (
            report.column("max_min") == highest
        ).all():
            raise ParameterError(
                f"all {report.images} rows of {source.title} are equal: nothing tells "
                "its units apart; choose other images or another layer",
                parameter="where",
            )
        return replace(report, provenance=self.provenance(**source.facts))
