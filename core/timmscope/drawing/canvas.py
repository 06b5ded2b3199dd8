"""`Canvas` places axes and text on a figure by inches from its top left corner."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from torch import Tensor

from timmscope.drawing.pixels import to_array
from timmscope.drawing.style import ASCENT, INK, LABEL_PT, LINE, RULE, replace_missing_glyphs


class Canvas:
    """Places axes and text on a new figure; create it inside `theme()`.

    All positions and sizes are in inches, from the top left corner of the figure.

    Args:
        width: width of the figure.
        height: height of the figure.
    """

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height))

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes whose frame has this position and size."""
        wide, high = self.width, self.height
        bottom = high - top - height
        return self.figure.add_axes((left / wide, bottom / high, width / wide, height / high))

    def picture(
        self,
        image: Tensor,
        left: float,
        top: float,
        width: float,
        height: float,
        **options: Any,
    ) -> Axes:
        """Add an image `(3, H, W)` in [0, 1], as large as fits with its own aspect ratio."""
        return self.array(to_array(image), left, top, width, height, **options)

    def array(
        self, array: Any, left: float, top: float, width: float, height: float, **options: Any
    ) -> Axes:
        """Add an array that `imshow` accepts, centred, as large as fits with its aspect ratio."""
        axes = self.axes(*_fitted(array, left, top, width, height))
        # "antialiased" averages when it shrinks an image and keeps pixels when it enlarges one.
        axes.imshow(array, aspect="auto", interpolation="antialiased", **options)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set(visible=True, color=RULE, linewidth=0.6)
        return axes

    def arrays(self, places: Iterable[tuple[Any, float, float, float, float]]) -> Axes:
        """Add many arrays, as `array` does, each with its left, top, width and height.

        All share one axes that covers the page, because an axes for each takes 40 times as long.
        """
        axes = self.axes(0, 0, self.width, self.height)
        axes.set(xlim=(0, self.width), ylim=(self.height, 0))
        axes.set_axis_off()
        frames = []
        for array, left, top, width, height in places:
            left, top, width, height = _fitted(array, left, top, width, height)
            image = AxesImage(
                axes,
                interpolation="antialiased",
                origin="upper",
                extent=(left, left + width, top + height, top),
            )
            image.set_data(array)
            axes.add_image(image)
            frames.append(Rectangle((left, top), width, height))
        axes.add_collection(
            PatchCollection(frames, facecolor="none", edgecolor=RULE, linewidth=0.6),
            autolim=False,
        )
        return axes

    def text(
        self,
        text: str,
        left: float,
        top: float,
        *,
        size: float = LABEL_PT,
        colour: str = INK,
        align: str = "left",
        bold: bool = False,
    ) -> None:
        """Add lines of text.

        Args:
            text: the lines.
            left: the left edge, the centre or the right edge, as `align` says.
            top: top of the first line.
            size: font size in points.
            colour: any matplotlib colour.
            align: `left`, `center` or `right`.
            bold: whether the text is bold.
        """
        for number, line in enumerate(replace_missing_glyphs(text).split("\n")):
            # Place each line by its baseline, because matplotlib's `top` depends on the letters.
            baseline = top + (number * LINE + ASCENT) * size / 72
            self.figure.text(
                left / self.width,
                1 - baseline / self.height,
                line,
                fontsize=size,
                color=colour,
                ha=align,
                va="baseline",
                weight="bold" if bold else "normal",
                parse_math=False,
            )

    def rule(self, left: float, top: float, width: float, colour: str = RULE) -> None:
        """Add a thin horizontal line."""
        from matplotlib.lines import Line2D

        y = 1 - top / self.height
        line = Line2D(
            [left / self.width, (left + width) / self.width], [y, y], color=colour, linewidth=0.7
        )
        self.figure.add_artist(line)


def _fitted(
    array: Any, left: float, top: float, width: float, height: float
) -> tuple[float, float, float, float]:
    """Left, top, width and height of an array centred in a frame with its own aspect ratio."""
    rows, columns = array.shape[:2]
    scale = min(width / columns, height / rows)
    fitted_w, fitted_h = columns * scale, rows * scale
    return left + (width - fitted_w) / 2, top + (height - fitted_h) / 2, fitted_w, fitted_h


def line_height(size_pt: float, lines: int = 1) -> float:
    """Return the height of lines of text in inches, for a font size in points."""
    return lines * size_pt * LINE / 72
