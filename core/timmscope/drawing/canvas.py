"""A page measured in inches from its top left corner, so that pictures and labels align exactly."""

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
from timmscope.drawing.style import ASCENT, INK, LABEL_PT, LINE, RULE, printable


class Canvas:
    """Places axes and text on a new figure; make it inside `theme()`.

    Args:
        width: inches.
        height: inches.
    """

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height))

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes whose frame has this place and size, inches from the top left."""
        bottom = self.height - top - height
        return self.figure.add_axes(
            (
                left / self.width,
                bottom / self.height,
                width / self.width,
                height / self.height,
            )
        )

    def picture(
        self,
        image: Tensor,
        left: float,
        top: float,
        width: float,
        height: float,
        **options: Any,
    ) -> Axes:
        """An image `(3, H, W)` in [0, 1], as large as fits the place with its own aspect."""
        return self.array(to_array(image), left, top, width, height, **options)

    def array(
        self, array: Any, left: float, top: float, width: float, height: float, **options: Any
    ) -> Axes:
        """An array as `imshow` takes it, centred in the place with its own aspect."""
        axes = self.axes(*_fitted(array, left, top, width, height))
        # Shrinking averages (antialiased), enlarging keeps the pixels visible.
        axes.imshow(array, aspect="auto", interpolation="antialiased", **options)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set(visible=True, color=RULE, linewidth=0.6)
        return axes

    def many(self, places: Iterable[tuple[Any, float, float, float, float]]) -> Axes:
        """Arrays as `array` shows them, each with its left, top, width and height.

        They share one axes that covers the page: axes of their own cost 40 times as much time.
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
        """Lines of text whose top is at `top`; `left` is the edge or centre that `align` names."""
        for number, line in enumerate(printable(text).split("\n")):
            # A baseline for each line: matplotlib's `top` depends on the letters.
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
        """A thin horizontal line."""
        from matplotlib.lines import Line2D

        y = 1 - top / self.height
        line = Line2D(
            [left / self.width, (left + width) / self.width], [y, y], color=colour, linewidth=0.7
        )
        self.figure.add_artist(line)


def _fitted(
    array: Any, left: float, top: float, width: float, height: float
) -> tuple[float, float, float, float]:
    """The place an array takes in the middle of another, with its own aspect."""
    high, wide = array.shape[:2]
    scale = min(width / wide, height / high)
    shown_w, shown_h = wide * scale, high * scale
    return left + (width - shown_w) / 2, top + (height - shown_h) / 2, shown_w, shown_h


def line_height(size_pt: float, lines: int = 1) -> float:
    """Height of lines of text in inches."""
    return lines * size_pt * LINE / 72
