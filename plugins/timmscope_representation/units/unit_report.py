"""Unit report: the units of a layer that do nothing, repeat others, or separate classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import Field

from timmscope import (
    ParameterError,
    Rows,
    StoreTechnique,
    UnitReport,
    UnitThresholds,
    judge_units,
)

_FEWEST = 3
"""Smallest number of rows: with two rows, any two units correlate fully."""
_LARGEST = 3.4e38
"""About the largest float32 number: extremes and quantiles are counted in float32."""


class JudgeUnits(StoreTechnique):
    """Reports which units of a layer are dead, saturated, sparse, redundant or selective.

    Dead units never fire. Saturated ones hardly depend on the image: `σ / |μ| ≤ saturated`, or the
    median is at least `ceiling` of the highest maximum. Sparse ones fire on few images. Redundant
    ones correlate with another unit: `|r| ≥ redundant`. Selective ones separate their best class
    from all other images, by the area under the ROC curve; the selectivity index
    `(μ_max − μ_rest) / (μ_max + μ_rest)` is given too, with the highest mean within a class and the
    mean of the other classes' means. With a `context`, any column replaces the labels: a unit may
    depend on a camera or a place (texts), or correlate with brightness or a year (numbers). Dead
    and saturated units can be pruned, and redundant ones whose partner stays and varies more.

    The rows of an array count as both mean and maximum of their images.

    Paper:
        Morcos, Barrett, Rabinowitz & Botvinick, "On the importance of single directions for
        generalization", ICLR 2018, arXiv:1803.06959: the selectivity index.

    Raises:
        StoreMismatch: `model` is not the one that the store was mined with.
        LayerNotFound: the store has no such layer.
        ParameterError: a parameter is out of range, there are too few images, or rows are all equal
            or hold NaN.
        StoreError: the store cannot be read.
    """

    context: str | None = Field(default=None, min_length=1)
    """Column that replaces the labels: `folder`, `width`, or one of the metadata."""
    sparse: float = Field(default=UnitThresholds.sparse, ge=0, le=1)
    """Largest share of images that a sparse unit fires on."""
    saturated: float = Field(default=UnitThresholds.saturated, ge=0)
    """Largest standard deviation of a saturated unit, relative to the magnitude of its mean."""
    ceiling: float = Field(default=UnitThresholds.ceiling, ge=0, le=1)
    """Share of its highest maximum that a saturated unit's median reaches."""
    redundant: float = Field(default=UnitThresholds.redundant, ge=0, le=1)
    """Smallest magnitude of the correlation of redundant units."""
    selective: float = Field(default=UnitThresholds.selective, ge=0, le=1)
    """Smallest area under the ROC curve of a selective unit."""
    class_size: int = Field(default=UnitThresholds.class_size, ge=1)
    """Smallest number of images of a class that counts."""

    def analyse(self, source: Rows, images: Any) -> UnitReport:
        """The report on a store's layer, or on an array's columns; it takes no query images.

        Raises:
            ParameterError: there are too few images, or rows are all equal or hold NaN.
        """
        if images is not None:
            raise ParameterError(f"{self.title()} takes no query images", parameter="images")
        if self.context is not None:
            self.layer_of(source)
        source.require(_FEWEST, "a report on units", "where")
        limits = UnitThresholds(**self.model_dump(exclude={"context"}))
        report = judge_units(source, thresholds=limits, by=self.context)
        if report.counts["nonfinite"]:
            for _ in source.batches("looking for NaN and infinite values"):  # reading refuses them
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
                f"all {report.images} rows of {source.title} are equal, so its units cannot be "
                "judged; choose other images or another layer",
                parameter="where",
            )
        return replace(report, provenance=self.provenance(source))
