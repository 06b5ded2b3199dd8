"""`UnitReport` is the result of `judge_units`: arrays over a layer's units, tables and a figure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from timmscope.results import Result, csv_text
from timmscope_registry import ParameterError, did_you_mean

from .unit_rows import LABEL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
STATISTICS = tuple(
    f"{kind}_{name}"
    for kind in ("mean", "max")
    for name in ("mean", "std", "min", "max", "zeros", *(f"q{100 * q:02.0f}" for q in QUANTILES))
)
"""Rows of `UnitReport.statistics`: of the units' spatial means, then of their maxima."""
FLAGS = ("dead", "saturated", "sparse", "redundant", "selective")
"""Flags in the order of listings."""
NUMBERS = (
    *("unit", "fires", *STATISTICS, "count", "nonfinite", "correlation", "partner"),
    *("selectivity", "auroc", "context_correlation"),
)
"""Columns of numbers."""
_FEW_IMAGES = 100
"""With fewer images, two of many units may correlate by 0.95 by chance."""
_SHOWN = 20
"""Number of units in the summary."""
_COLUMNS = ("unit", "flags", "prunable", "fires", "mean_mean", "partner", "correlation")
_CLASS_COLUMNS = ("best_class", "selectivity", "auroc")
_NUMBER_COLUMNS = ("context_correlation",)


@dataclass(frozen=True, kw_only=True)
class UnitReport(Result):
    """Statistics and flags of every unit of a layer, as arrays (C,).

    A layer is rectified if no value is below -0.4, or further below zero than a tenth of the
    largest value: after ReLU, ReLU6, GELU, SiLU or hard swish. A unit of a rectified layer fires on
    an image if its spatial maximum is above zero. `UnitThresholds` holds the thresholds.

    Attributes:
        layer: name of the layer.
        images: number of images that were read.
        labelled: number of these images with a label, or with a value of the column `by`.
        by: source of classes or numbers: ``label``, or a column of the images or their metadata.
        unjudged: why selectivity cannot be judged, in a few words; empty if it can.
        rectified: whether the layer is rectified.
        thresholds: the thresholds by name.
        statistics: (20, C) mean, standard deviation, smallest and largest value, share of zeros and
            five quantiles of the units' spatial means and maxima, in the order of the columns
            ``mean_mean`` to ``max_q99`` of `table`; `column` returns one by name.
        fires: share of images on which the spatial maximum is above zero.
        count: number of images whose spatial mean is neither NaN nor infinite.
        correlation: Pearson's correlation of the spatial means with those of the other unit for
            which its magnitude is highest; NaN for a constant unit.
        partner: that unit, -1 for none.
        best_class: class of the highest mean, None without labels.
        selectivity: index of Morcos et al. (ICLR 2018) for this class, 0 to 1; NaN without labels.
        auroc: area under the ROC curve of this class against all other images.
        context_correlation: Pearson's correlation of the spatial means with a column of numbers;
            NaN if there is none, and for a constant unit.
        dead: never fires; in a layer that is not rectified, has the same value on all images.
        sparse: fires on few images; set in rectified layers only.
        saturated: always on and hardly dependent on the image: its spatial mean varies little, or
            its maximum is at its ceiling on half of the images.
        redundant: correlates highly, with either sign, with its partner.
        selective: separates its best class from all other images.
        nonfinite: number of images on which it is NaN or infinite; other statistics exclude them.
        prunable: dead, saturated, or redundant with a unit that stays and varies more.
    """

    layer: str
    images: int
    labelled: int
    by: str
    unjudged: str
    rectified: bool
    thresholds: dict[str, float]
    statistics: np.ndarray
    fires: np.ndarray
    count: np.ndarray
    correlation: np.ndarray
    partner: np.ndarray
    best_class: list[str | None]
    selectivity: np.ndarray
    auroc: np.ndarray
    context_correlation: np.ndarray
    dead: np.ndarray
    sparse: np.ndarray
    saturated: np.ndarray
    redundant: np.ndarray
    selective: np.ndarray
    nonfinite: np.ndarray
    prunable: np.ndarray

    def __len__(self) -> int:
        return len(self.correlation)

    def __str__(self) -> str:
        return self.sentence

    @property
    def counts(self) -> dict[str, int]:
        """Number of units with each flag."""
        names = (*FLAGS, "prunable", "nonfinite")
        return {name: int(np.count_nonzero(getattr(self, name))) for name in names}

    @property
    def sentence(self) -> str:
        """The counts in one sentence."""
        counts = self.counts
        found = [f"{counts[name]} {name}" for name in ("dead", "saturated")]
        if self.rectified:
            found.append(f"{counts['sparse']} sparse")
        found.append(f"{counts['redundant']} redundant")
        if not np.isnan(self.auroc).all():
            what = "class" if self.by == LABEL else self.by
            found.append(f"{counts['selective']} selective for a {what}")
        correlation = self.context_correlation
        if not np.isnan(correlation).all():
            unit = int(np.nanargmax(np.abs(correlation)))
            over = f" over {self.labelled}" if self.labelled < self.images else ""
            r = f"r = {correlation[unit]:+.2f}{over}"
            found.append(f"unit {unit} closest to {self.by} ({r})")
        text = f"{self.layer}: {len(self)} units over {self.images} images: {', '.join(found)}"
        if counts["nonfinite"]:
            text += f"; {counts['nonfinite']} were NaN or infinite on some images"
        if self.unjudged and self.labelled:
            text += f"; none is selective: {self.unjudged}"
        text += f"; {counts['prunable']} could be pruned"
        if self.images < _FEW_IMAGES:
            text += f"; with only {self.images} images, much of this is chance"
        return text

    def flags(self, unit: int) -> list[str]:
        """Return the flags of one unit, including `nonfinite`."""
        return [name for name in (*FLAGS, "nonfinite") if getattr(self, name)[unit]]

    def column(self, name: str) -> np.ndarray:
        """Return a column of numbers of `table`, (C,); missing numbers are NaN, partners -1.

        Raises:
            ParameterError: there is no such column, or it holds no numbers.
        """
        if name in STATISTICS:
            return np.asarray(self.statistics[STATISTICS.index(name)])
        if name not in NUMBERS:
            hint = did_you_mean(name, NUMBERS)
            raise ParameterError(
                f"a unit report has no column {name!r} of numbers; {f'{hint} ' if hint else ''}"
                f"there are {', '.join(NUMBERS)}",
                parameter="sort",
            )
        return np.arange(len(self)) if name == "unit" else np.asarray(getattr(self, name))

    def table(self) -> list[dict[str, Any]]:
        """Return one dictionary of plain values per unit; missing numbers are None."""

        def values(name: str) -> list[Any]:
            return [
                None if isinstance(value, float) and not math.isfinite(value) else value
                for value in self.column(name).tolist()
            ]

        columns: dict[str, list[Any]] = {
            "flags": [self.flags(unit) for unit in range(len(self))],
            "prunable": self.prunable.tolist(),
            **{name: values(name) for name in ("fires", *STATISTICS)},
            **{name: values(name) for name in ("count", "nonfinite", "correlation")},
            "partner": [partner if partner >= 0 else None for partner in self.partner.tolist()],
            "best_class": self.best_class,
            **{name: values(name) for name in ("selectivity", "auroc", "context_correlation")},
        }
        return [
            {"unit": unit, **dict(zip(columns, row, strict=True))}
            for unit, row in enumerate(zip(*columns.values(), strict=True))
        ]

    def ranked(self, by: str, *, ascending: bool = False) -> list[int]:
        """Return the units in order of a column of `table` (correlations by magnitude), NaN last.

        Raises:
            ParameterError: there is no such column, or it holds no numbers.
        """
        values = self.column(by).astype(np.float64)
        if by == "partner":
            values[self.partner < 0] = np.nan
        values = np.abs(values) if by.endswith("correlation") else values
        values[~np.isfinite(values)] = np.nan
        order = np.argsort(values if ascending else -values, kind="stable")  # NaN comes last
        return [int(unit) for unit in order]

    def striking(self, count: int = _SHOWN) -> list[int]:
        """Return up to `count` units that stand out: some with every flag, the clearest first."""
        redundancy = np.nan_to_num(np.abs(self.correlation))
        area = np.nan_to_num(self.auroc)
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = self.column("mean_std") / np.abs(self.column("mean_mean"))
        clearest = {
            "dead": -np.arange(len(self)),
            "saturated": -np.nan_to_num(spread, nan=np.inf),
            "sparse": -np.nan_to_num(self.fires),
            "redundant": redundancy,
            "selective": area,
        }
        lists = [
            [u for u in np.argsort(-clearest[name], kind="stable") if getattr(self, name)[u]]
            for name in FLAGS
        ]
        context = np.nan_to_num(np.abs(self.context_correlation))
        if context.any():
            lists.insert(0, np.argsort(-context, kind="stable").tolist())
        # Add the units closest to these flags, because few units may have them.
        lists += [
            np.argsort(-values, kind="stable")[:3].tolist() if values.any() else []
            for values in (redundancy, area)
        ]
        found: dict[int, int] = {}  # maps a unit to the list that it comes from
        for place in range(max(map(len, lists))):
            for number, units in enumerate(lists):
                if place < len(units) and len(found) < count:
                    found.setdefault(int(units[place]), number)
        return sorted(found, key=lambda unit: found[unit])

    def figure(self) -> Figure:
        """Draw activity, range, redundancy and selectivity of the layer's units."""
        from .figure import units_figure

        return units_figure(self)

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per unit that stands out, with the most important columns."""
        numbers = not np.isnan(self.context_correlation).all()
        more = () if self.unjudged else _NUMBER_COLUMNS if numbers else _CLASS_COLUMNS
        table = self.table()
        return [
            {name: table[unit][name] for name in (*_COLUMNS, *more)} for unit in self.striking()
        ]

    def documents(self) -> dict[str, str]:
        """Return `units.csv` with all units and all columns of `table`, flags as one text."""
        rows = [{**row, "flags": " ".join(row["flags"])} for row in self.table()]
        return {"units.csv": csv_text(rows)}

    def to_csv(self, file: str | Path) -> Path:
        """Write all units as CSV, one line per unit, and return the path."""
        path = Path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.documents()["units.csv"], encoding="utf-8", newline="")
        return path
