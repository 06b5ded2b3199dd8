"""`Evaluation` holds the values of metrics for techniques, for every image and over all images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from timmscope.evaluation.metric import Metric
from timmscope.results.bootstrap import interval
from timmscope.results.result import Provenance, Result
from timmscope.store.records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Evaluation(Result):
    """Values of M metrics for T techniques on N images.

    Attributes:
        techniques: names of the techniques.
        metrics: names of the metrics.
        better: for each metric, `higher` or `lower`.
        images: names of the images.
        values: `(T, M, N)` float64; NaN if there is no map or the metric does not apply.
        mean: `(T, M)`, over the images that have a value.
        low: `(T, M)`, lower end of the 95 % confidence interval of the mean (bootstrap).
        high: `(T, M)`, upper end of that interval.
        curves: for each metric that has a curve `x`, `x_label`, `y_label`, and `mean` by technique.
        refused: maps that techniques refused to compute: image, technique, reason.
        unreadable: images that could not be read: image, reason.
    """

    techniques: list[str]
    metrics: list[str]
    better: list[str]
    images: list[str]
    values: Tensor
    mean: Tensor
    low: Tensor
    high: Tensor
    curves: dict[str, Any]
    refused: list[dict[str, str]]
    unreadable: list[dict[str, str]]

    def figure(self) -> Figure:
        """Draw one column per metric, with means and intervals above mean curves."""
        from timmscope.evaluation.evaluation_figure import evaluation_figure

        return evaluation_figure(self)

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per technique: each metric's mean and its 95 % confidence interval."""
        rows = []
        for t, technique in enumerate(self.techniques):
            row: dict[str, Any] = {
                "technique": technique,
                "maps": int(torch.isfinite(self.values[t]).any(0).sum()),
            }
            for m, metric in enumerate(self.metrics):
                row[metric] = _finite(self.mean[t, m])
                row[f"{metric} 95%"] = [_finite(self.low[t, m]), _finite(self.high[t, m])]
            rows.append(row)
        return rows


def summarise(
    records: Iterable[Record],
    images: list[str],
    techniques: list[str],
    metrics: Sequence[Metric],
    axes: dict[str, list[float]],
    provenance: Provenance,
) -> Evaluation:
    """Combine the records of all maps to an evaluation."""
    names = [metric.name for metric in metrics]
    values = np.full((len(techniques), len(names), len(images)), np.nan)
    curves: dict[tuple[str, str], tuple[int, NDArray[np.float64]]] = {}
    refused, unreadable = [], {}
    for record in records:
        if "unreadable" in record:
            unreadable[record["name"]] = record["unreadable"]
            continue
        if "refused" in record:
            refused.append(
                {
                    "image": record["name"],
                    "technique": record["technique"],
                    "reason": record["refused"],
                }
            )
            continue
        row = techniques.index(record["technique"])
        for column, name in enumerate(names):
            found = record["metrics"][name]
            if found is None:
                continue
            values[row, column, record["image"]] = found["value"]
            if "curve" in found:
                count, total = curves.get((name, record["technique"]), (0, np.zeros(1)))
                curves[name, record["technique"]] = (
                    count + 1,
                    total + np.array(found["curve"], float),
                )
    mean, low, high = (np.full(values.shape[:2], np.nan) for _ in range(3))
    for t, m in np.ndindex(*values.shape[:2]):
        known = values[t, m][np.isfinite(values[t, m])]
        if len(known):
            mean[t, m] = known.mean()
            low[t, m], high[t, m] = interval(known, provenance.seed % 2**32)
    return Evaluation(
        provenance=provenance,
        techniques=techniques,
        metrics=names,
        better=[metric.better for metric in metrics],
        images=images,
        values=torch.from_numpy(values),
        mean=torch.from_numpy(mean),
        low=torch.from_numpy(low),
        high=torch.from_numpy(high),
        curves={
            metric.name: {
                "x": axes[metric.name],
                "x_label": metric.x_label,
                "y_label": metric.y_label,
                "mean": {
                    technique: (total / count).tolist()
                    for (name, technique), (count, total) in curves.items()
                    if name == metric.name
                },
            }
            for metric in metrics
            if any(name == metric.name for name, _ in curves)
        },
        refused=refused,
        unreadable=[{"image": name, "reason": reason} for name, reason in unreadable.items()],
    )


def _finite(value: Tensor) -> float | None:
    return float(value) if bool(torch.isfinite(value)) else None
