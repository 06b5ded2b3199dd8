"""Finds curves among the notes of a result, and draws them.

Notes whose names are `QUANTITY at PARAMETER VALUE`, such as `score at λ 10`, are points of a curve.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POINT = re.compile(r"^(?P<what>.+) at (?P<parameter>\S+) (?P<value>[-+]?[\d.]+(?:e[-+]?\d+)?)$")
_LEAST = 2
_SHOWN = 8

Curves = dict[str, dict[str, dict[float, list[float | None]]]]
"""By parameter, quantity and value of the parameter: a number for each image."""


def note_curves(notes: Mapping[str, Any]) -> Curves:
    """Return the notes that are curves of two points and more.

    Args:
        notes: notes of a result by name.
    """
    found: Curves = {}
    for name, values in notes.items():
        point = _POINT.match(name)
        if point is not None and isinstance(values, list):
            quantities = found.setdefault(point["parameter"], {})
            quantities.setdefault(point["what"], {})[float(point["value"])] = values
    return {
        parameter: kept
        for parameter, quantities in found.items()
        if (kept := {what: at for what, at in quantities.items() if len(at) >= _LEAST})
    }


def is_point(name: str) -> bool:
    """Whether a note of this name is a point of a curve."""
    return _POINT.match(name) is not None


def note_curves_figure(notes: Mapping[str, Any], title: str) -> Figure | None:
    """Draw the curves of a result, a line per image; None if there are none.

    Two quantities at the same values of a parameter are drawn against each other, and each point is
    marked with its value; other quantities against the parameter.
    """
    curves = note_curves(notes)
    if not curves:
        return None
    from matplotlib.figure import Figure as NewFigure

    from timmscope.drawing.style import SERIES, SMALL_PT, theme

    with theme():
        figure = NewFigure(figsize=(4.4, 3.4 * len(curves)), layout="constrained")
        every = figure.subplots(len(curves), 1, squeeze=False)[:, 0]
        for axes, (parameter, quantities) in zip(every, curves.items(), strict=True):
            names = list(quantities)
            values = sorted(quantities[names[0]])
            together = len(names) == _LEAST and values == sorted(quantities[names[1]])
            images = len(quantities[names[0]][values[0]])
            for image in range(min(images, _SHOWN)):
                colour, label = SERIES[image % len(SERIES)], f"image {image + 1}"
                if together:
                    x, y = ([quantities[name][at][image] for at in values] for name in names)
                    axes.plot(_numbers(x), _numbers(y), "o-", ms=3, color=colour, label=label)
                    if not image:
                        for at, px, py in zip(values, _numbers(x), _numbers(y), strict=True):
                            axes.annotate(
                                f" {parameter} {at:g}", (px, py), fontsize=SMALL_PT - 1, va="top"
                            )
                    continue
                for name in names:
                    line = [quantities[name][at][image] for at in values]
                    axes.plot(values, _numbers(line), "o-", ms=3, color=colour, label=label)
            axes.set_xlabel(names[0] if together else parameter)
            axes.set_ylabel(names[1] if together else ", ".join(names))
            axes.tick_params(length=3, width=0.6)
            if images > 1:
                axes.legend(fontsize=SMALL_PT)
        every[0].set_title(title, loc="left")
    return figure


def _numbers(values: list[float | None]) -> list[float]:
    """Values for a plot: what is no finite number is left out."""
    return [float("nan") if value is None else value for value in values]
