"""`JudgedUnits`: the report on a layer's units as a result, with table, CSV and figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from timmscope.results.csv_text import csv_text
from timmscope.results.result import Provenance, Result
from timmscope_registry import ParameterError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from timmscope.techniques.rows import Rows
    from timmscope.units import UnitThresholds

_SHOWN = 20
"""Units in the summary: those that stand out."""
_LARGEST = 3.4e38
_FEWEST = 3
"""Rows: any two units of two rows correlate fully."""
_COLUMNS = ["unit", "flags", "prunable", "fires", "mean_mean", "partner", "correlation"]
_OF_CLASSES = ["best_class", "selectivity", "auroc"]
_OF_NUMBERS = ["context_correlation"]


@dataclass(frozen=True, kw_only=True)
class JudgedUnits(Result):
    """Every unit of a layer judged; the words are those of `UnitReport`.

    Attributes:
        layer: name of the layer.
        sentence: the counts in one sentence.
        counts: how many units have each flag.
        images: images that were read.
        labelled: those of them with a class, or a number in its place.
        by: what classes, or numbers, are: ``label``, or a column.
        unjudged: why no unit can be selective; empty where some can.
        rectified: whether a unit fires above zero.
        limits: the thresholds by name.
        units: a dictionary a unit, as `UnitReport.table` has them.
        striking: units worth a look, some of every flag.
    """

    layer: str
    sentence: str
    counts: dict[str, int]
    images: int
    labelled: int
    by: str
    unjudged: str
    rectified: bool
    limits: dict[str, float]
    units: list[dict[str, Any]]
    striking: list[int]

    @classmethod
    def of(
        cls,
        rows: Rows,
        thresholds: UnitThresholds,
        by: str | None,
        provenance: Provenance,
    ) -> JudgedUnits:
        """Judge the units of a store's layer, or the columns of an array.

        Raises:
            ParameterError: as `judge_units`; or there are fewer than three rows, all are equal, or
                some are no numbers.
            StoreError: as `judge_units`.
        """
        from timmscope.units import UnitRows, judge_rows

        rows.require(_FEWEST, "a report on units", "where")
        if rows.layer is not None:
            source = UnitRows.of_layer(rows.layer, rows.chosen, by)
        else:
            source = UnitRows.of_array(rows.title, int(rows.ids[-1]) + 1, rows.dim, rows.batches)
        report = judge_rows(source, thresholds, by=by)
        if report.counts["nonfinite"]:
            for _ in rows.batches("looking for what is no number"):  # which refuses it
                pass
        largest = float(max(report.maxima.maximum.max(), -report.pooled.minimum.min()))
        if largest > _LARGEST:
            raise ParameterError(
                f"{rows.title} holds values up to {largest:.2g}, beyond float32's range: scale "
                "them down",
                parameter="source",
            )
        if all((each.minimum == each.maximum).all() for each in (report.pooled, report.maxima)):
            raise ParameterError(
                f"all {report.images} rows of {rows.title} are equal: nothing tells "
                "its units apart; choose other images or another layer",
                parameter="where",
            )
        return cls(
            provenance=provenance,
            layer=report.layer,
            sentence=report.summary(),
            counts=report.counts,
            images=report.images,
            labelled=report.labelled,
            by=report.by,
            unjudged=report.unjudged,
            rectified=report.rectified,
            limits=dict(vars(report.thresholds)),
            units=report.table(),
            striking=report.striking(_SHOWN),
        )

    def figure(self) -> Figure:
        """Activity, spread, redundancy and selectivity of the units, and which could be pruned."""
        from timmscope.units.figure import units_figure

        return units_figure(
            self.units,
            heading=self.sentence,
            rectified=self.rectified,
            limits=self.limits,
            by=self.by,
        )

    def documents(self) -> dict[str, str]:
        """All units and all columns as CSV."""
        from timmscope.units.report import flat

        return {"units.csv": csv_text(flat(self.units))}

    def summary(self) -> list[dict[str, Any]]:
        """The units that stand out, one a row."""
        columns = _COLUMNS
        if not self.unjudged:
            tied = any(unit["context_correlation"] is not None for unit in self.units)
            columns = columns + (_OF_NUMBERS if tied else _OF_CLASSES)
        return [{name: self.units[unit][name] for name in columns} for unit in self.striking]
