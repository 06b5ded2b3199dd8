"""``timmscope stats`` prints and draws the `UnitReport` of a layer of a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from timmscope.cli import output, parameters
from timmscope.cli.text import plain_help

if TYPE_CHECKING:
    from timmscope.units import UnitReport


@plain_help
def stats(
    store: parameters.StorePath,
    layer: str,
    /,
    *,
    count: parameters.Count = 20,
    sort: Annotated[str | None, Parameter(show_default=False)] = None,
    ascending: parameters.Flag = False,
    where: parameters.Where = None,
    metadata: parameters.Metadata = None,
    csv: Path | None = None,
    figure: parameters.Output = None,
    json: parameters.Flag = False,
) -> None:
    """Find dead, sparse, saturated, redundant and selective units of a layer.

    Dead units never fire. Saturated units are always on and hardly depend on the image. Sparse
    units fire on at most 1 % of images. Redundant units have a correlation of at least 0.95 with
    another unit. Selective units separate their best class from all other images with an area
    under the ROC curve of at least 0.95. Reads all rows once; memory does not grow with the number
    of images. `timmscope run unit-report` takes other limits, and any column instead of labels.

    Parameters
    ----------
    layer
        Layer of the store.
    count
        How many units to show; without --sort those that stand out.
    sort
        Column of --csv by which units are sorted, highest first, as in ``correlation`` (by
        magnitude), ``fires``, ``mean_std`` or ``auroc``.
    ascending
        With --sort, lowest first.
    csv
        CSV file to write, one line per unit.
    figure
        PNG to write; by default ``timmscope-out/stats-LAYER.png``.
    json
        Print JSON, with all units.
    """
    from timmscope.store import Store
    from timmscope.units import judge_units
    from timmscope_registry import ParameterError

    if count < 1:
        raise ParameterError(f"--count is {count}, expected at least 1", parameter="count")
    opened = Store.open(store)
    rows = opened.layer(layer)
    if metadata is not None:
        rows = opened.with_metadata(metadata).layer(layer)
    report = judge_units(rows, where)
    shown = report.ranked(sort, ascending=ascending)[:count] if sort else report.striking(count)
    file = figure or Path("timmscope-out") / f"stats-{output.slug(layer)}.png"
    output.write_figure(report.figure(), file)
    if csv is not None:
        report.to_csv(csv)
    if json:
        output.print_json(
            {
                "store": str(store),
                "layer": layer,
                "where": where,
                "images": report.images,
                "labelled": report.labelled,
                "rectified": report.rectified,
                "counts": report.counts,
                "thresholds": report.thresholds,
                "figure": str(file),
                "units": report.table(),
            }
        )
        return
    output.say(f"{report.sentence}\n")
    _table(report, shown, sort)
    if not report.rectified:
        output.say(
            "\nThis layer has negative values: no unit counts as sparse, and a unit is dead if its "
            "value never changes."
        )
    output.say(f"\nwrote {file}{f' and {csv}' if csv else ''}")


def _table(report: UnitReport, units: list[int], sort: str | None) -> None:
    from rich.text import Text

    classes = any(report.best_class)
    sizes = _SIZES if not classes or output.console().width >= _WIDE else {}
    columns = ["unit", "flags", *sizes.values(), "fires", "partner", "r"]
    columns += ["best class", "selectivity", "AUROC"] if classes else []
    table = report.table()
    extra = sort if sort in table[0] and sort not in (*sizes, *_SHOWN) else None
    lines = []
    for unit in units:
        row = table[unit]
        fires = row["fires"]
        line = [
            unit,
            Text("\n".join(row["flags"])),  # one per line, so that the column is narrow
            *(None if row[name] is None else f"{row[name]:.3g}" for name in sizes),
            None if fires is None else f"{100 * fires:.3g} %",
            row["partner"],
            None if row["correlation"] is None else f"{row['correlation']:+.3f}",
        ]
        if classes:
            line.append(row["best_class"])
            line += [
                None if row[name] is None else f"{row[name]:.3f}"
                for name in ("selectivity", "auroc")
            ]
        lines.append([*line, row[extra]] if extra else line)
    columns += [extra] if extra else []
    words = ("flags", "best class")
    output.table(
        columns,
        lines,
        right=[column for column in columns if column not in words],
        keep=[column for column in columns if column != "best class"],
    )


_WIDE = 108
"""Smallest width of a terminal, in characters, that has room for classes and sizes."""
_SIZES = {"mean_mean": "mean", "mean_std": "std", "max_max": "largest"}
"""Columns of the report with statistics of a unit's values, and their headings in the table."""
_SHOWN = ("unit", "fires", "partner", "correlation", "selectivity", "auroc")
"""Columns of the report that the table always has."""
