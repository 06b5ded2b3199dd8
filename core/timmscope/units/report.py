"""`UnitReport`: what was found of every unit of a layer, as arrays, rows, CSV and a figure."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from timmscope_registry import ParameterError, did_you_mean

from .unit_rows import LABEL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from timmscope.store import UnitStatistics

    from .judge import UnitThresholds

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
FEW = 100
"""Images below which a correlation of 0.95 between some two of many units says little."""
FLAGS = ("dead", "saturated", "sparse", "redundant", "selective")
"""In the order in which they are told."""


@dataclass(frozen=True, kw_only=True)
class UnitReport:
    """Every unit of a layer judged; arrays (C,). Limits are those of `UnitThresholds`.

    A layer counts as rectified when no value lies below -0.4, nor further below zero than a tenth
    of the largest value lies above it: after ReLU, ReLU6, GELU, SiLU or hard swish. There a unit
    fires on an image where its spatial maximum is above zero.

    Attributes:
        layer: name of the layer.
        images: images that were read.
        labelled: those of them with a label, or a value of the column in its place.
        by: what classes, or numbers, are: ``label``, or a column of the images or their metadata.
        unjudged: why no unit can be selective, in a few words; empty where some can.
        rectified: whether the layer is.
        thresholds: the limits.
        pooled: statistics of the units' spatial means.
        maxima: statistics of their spatial maxima; `maxima.positive` is the share of images that a
            unit fires on.
        correlation: Pearson's correlation of the spatial means with those of the other unit where
            its magnitude is highest; NaN for a constant unit.
        partner: that unit, -1 for none.
        best_class: class of the highest mean, None without labels.
        selectivity: index of Morcos et al. (ICLR 2018) for it, 0 to 1; NaN without labels.
        auroc: area under the ROC curve of that class against all other images.
        context_correlation: Pearson's correlation of the spatial means with a column of numbers;
            NaN where there is none, and for a constant unit.
        dead: never fires; in a layer that is not rectified, has one value whatever the image.
        sparse: fires on few images; told of rectified layers only.
        saturated: always on, hardly depending on the image: its spatial mean varies little, or its
            maximum is at its ceiling on half of the images.
        redundant: correlates highly, with either sign, with its partner.
        selective: tells its best class from all other images.
        nonfinite: was NaN or infinite on some image; these values are left out of all else.
        prunable: dead, saturated, or redundant with a unit that stays and varies more.
    """

    layer: str
    images: int
    labelled: int
    by: str
    unjudged: str
    rectified: bool
    thresholds: UnitThresholds
    pooled: UnitStatistics
    maxima: UnitStatistics
    correlation: np.ndarray
    partner: np.ndarray
    best_class: Sequence[str | None]
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
        return self.summary()

    @property
    def counts(self) -> dict[str, int]:
        """How many units have each flag."""
        names = (*FLAGS, "prunable", "nonfinite")
        return {name: int(getattr(self, name).sum()) for name in names}

    def summary(self) -> str:
        """The counts in one sentence."""
        counts = self.counts
        told = [f"{counts[name]} {name}" for name in ("dead", "saturated")]
        if self.rectified:
            told.append(f"{counts['sparse']} sparse")
        told.append(f"{counts['redundant']} redundant")
        if not np.isnan(self.auroc).all():
            what = "class" if self.by == LABEL else self.by
            told.append(f"{counts['selective']} selective of a {what}")
        tie = self.context_correlation
        if not np.isnan(tie).all():
            unit = int(np.nanargmax(np.abs(tie)))
            of = f" over {self.labelled}" if self.labelled < self.images else ""
            told.append(f"unit {unit} closest to {self.by} (r = {tie[unit]:+.2f}{of})")
        text = f"{self.layer}: {len(self)} units over {self.images} images: {', '.join(told)}"
        if counts["nonfinite"]:
            text += f"; {counts['nonfinite']} were NaN or infinite on some images"
        if self.unjudged and self.labelled:
            text += f"; none is selective: {self.unjudged}"
        text += f"; {counts['prunable']} could be pruned"
        if self.images < FEW:
            text += f"; over {self.images} images much of this is chance"
        return text

    def flags(self, unit: int) -> list[str]:
        """What is said of one unit, `nonfinite` included."""
        return [name for name in (*FLAGS, "nonfinite") if getattr(self, name)[unit]]

    def table(self) -> list[dict[str, Any]]:
        """One dictionary a unit, of plain values; None where there is no number."""
        columns: dict[str, Sequence[Any]] = {
            "flags": [self.flags(unit) for unit in range(len(self))],
            "prunable": self.prunable.tolist(),
            "fires": self._numbers(self.maxima.positive),
        }
        for name, statistics in (("mean", self.pooled), ("max", self.maxima)):
            columns |= {
                f"{name}_{key}": self._numbers(values)
                for key, values in _statistics_columns(statistics).items()
            }
        columns |= {
            "count": self.pooled.count.tolist(),
            "nonfinite": np.maximum(self.pooled.nonfinite, self.maxima.nonfinite).tolist(),
            "correlation": self._numbers(self.correlation),
            "partner": [partner if partner >= 0 else None for partner in self.partner.tolist()],
            "best_class": list(self.best_class),
            "selectivity": self._numbers(self.selectivity),
            "auroc": self._numbers(self.auroc),
            "context_correlation": self._numbers(self.context_correlation),
        }
        return [
            {"unit": unit, **dict(zip(columns, values, strict=True))}
            for unit, values in enumerate(zip(*columns.values(), strict=True))
        ]

    def ranked(self, by: str, *, ascending: bool = False) -> list[int]:
        """Units in order of a column of `table` (correlations by magnitude), NaN last.

        Raises:
            ParameterError: there is no such column, or it holds no numbers.
        """
        rows = self.table()
        names = [name for name in rows[0] if name not in ("flags", "best_class", "prunable")]
        if by not in names:
            hint = did_you_mean(by, names)
            raise ParameterError(
                f"units cannot be sorted by {by!r}; {f'{hint} ' if hint else ''}"
                f"there are {', '.join(names)}",
                parameter="sort",
            )

        def place(row: dict[str, Any]) -> tuple[bool, float, int]:
            value = row[by]
            if value is None:
                return True, 0.0, row["unit"]
            value = abs(value) if by.endswith("correlation") else value
            return False, value if ascending else -value, row["unit"]

        return [row["unit"] for row in sorted(rows, key=place)]

    def striking(self, count: int) -> list[int]:
        """Up to `count` units worth a look: some of every flag, the clearest of each first."""
        size = np.nan_to_num(np.abs(self.correlation))
        area = np.nan_to_num(self.auroc)
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = self.pooled.std / np.abs(self.pooled.mean)
        clearest = {
            "dead": -np.arange(len(self)),
            "saturated": -np.nan_to_num(spread, nan=np.inf),
            "sparse": -np.nan_to_num(self.maxima.positive),
            "redundant": size,
            "selective": area,
        }
        lists = [
            [u for u in np.argsort(-clearest[name], kind="stable") if getattr(self, name)[u]]
            for name in FLAGS
        ]
        tie = np.nan_to_num(np.abs(self.context_correlation))
        if tie.any():
            lists.insert(0, np.argsort(-tie, kind="stable").tolist())
        # However few have a flag, what comes closest is worth knowing.
        lists += [
            np.argsort(-size, kind="stable")[:3].tolist() if size.any() else [],
            np.argsort(-area, kind="stable")[:3].tolist() if area.any() else [],
        ]
        found: dict[int, int] = {}  # unit to the list that it is told in
        for place in range(max(map(len, lists))):
            for number, units in enumerate(lists):
                if place < len(units) and len(found) < count:
                    found.setdefault(int(units[place]), number)
        return sorted(found, key=lambda unit: found[unit])

    def to_csv(self, file: str | Path) -> Path:
        """Write `table` as CSV, one line a unit; returns the path."""
        path = Path(file)
        rows = self.table()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as target:
            writer = csv.DictWriter(target, rows[0])
            writer.writeheader()
            writer.writerows(flat(rows))
        return path

    def figure(self) -> Figure:
        """A picture of the layer: activity, spread, redundancy and selectivity of its units."""
        from timmscope.units.figure import units_figure

        return units_figure(
            self.table(),
            heading=self.summary(),
            rectified=self.rectified,
            limits=vars(self.thresholds),
            by=self.by,
        )

    @staticmethod
    def _numbers(values: np.ndarray) -> list[float | None]:
        return [value if math.isfinite(value) else None for value in values.tolist()]


def flat(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `UnitReport.table` with flags as one text, as a CSV file has them."""
    return [{**row, "flags": " ".join(row["flags"])} for row in rows]


def _statistics_columns(statistics: UnitStatistics) -> dict[str, np.ndarray]:
    own = {
        "mean": statistics.mean,
        "std": statistics.std,
        "min": statistics.minimum,
        "max": statistics.maximum,
        "zeros": statistics.zeros,
    }
    return own | {f"q{round(100 * q):02d}": statistics.quantile(q) for q in QUANTILES}
