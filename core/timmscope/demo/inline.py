"""Pictures and curves as text inside a page, so that the report is one file."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path

import matplotlib
from PIL import Image
from torch import Tensor

from timmscope.drawing import HeatScale, png_bytes, to_array
from timmscope.drawing.style import SERIES, number

WIDTH, HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 34


def data_uri(image: Tensor, *, lossless: bool = False) -> str:
    """An image `(3, H, W)` in [0, 1] as a `data:` address; JPEG unless `lossless`."""
    if lossless:
        kind, content = "png", png_bytes(image)
    else:
        buffer = io.BytesIO()
        Image.fromarray(to_array(image)).save(buffer, format="JPEG", quality=88, optimize=True)
        kind, content = "jpeg", buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def png_uri(path: Path) -> str:
    """A PNG file as a `data:` address."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def gradient(scale: HeatScale) -> str:
    """A map's colours from low to high, as a CSS gradient."""
    stops = [matplotlib.colors.to_hex(scale.colours(step / 16)) for step in range(17)]
    return f"linear-gradient(to right, {', '.join(stops)})"


def curve_svg(
    curves: Mapping[str, Tensor],
    *,
    value: str,
    log: bool = False,
    reference: tuple[str, float] | None = None,
) -> str:
    """Values by step as an SVG drawing whose text takes the page's colours.

    Args:
        curves: name → `(steps,)`; one without a name needs no legend.
        value: what the vertical axis shows.
        log: logarithmic vertical axis; values that are not positive are left out.
        reference: a dashed horizontal line, its label and value.
    """
    lists = {name: [float(v) for v in values] for name, values in curves.items()}
    log = log and any(v > 0 for values in lists.values() for v in values)
    shown = [v for values in lists.values() for v in values if not log or v > 0]
    if reference is not None and (reference[1] > 0 or not log):
        shown.append(reference[1])
    ticks = _log_ticks(min(shown), max(shown)) if log else _ticks(min(shown), max(shown))
    low, high = (math.log10(ticks[0]), math.log10(ticks[-1])) if log else (ticks[0], ticks[-1])
    steps = max(len(values) for values in lists.values())

    def x(step: int) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * step / max(steps - 1, 1)

    def y(v: float) -> float:
        place = ((math.log10(v) if log else v) - low) / (high - low)
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - place)

    parts = [
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(value)} by step">'
    ]
    parts += [
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(tick):.1f}" '
        f'y2="{y(tick):.1f}"/><text x="{_LEFT - 7}" y="{y(tick) + 4:.1f}" '
        f'text-anchor="end">{_tick_text(tick)}</text>'
        for tick in ticks
    ]
    parts += [
        f'<text x="{x(step - 1):.1f}" y="{HEIGHT - _BOTTOM + 17}" '
        f'text-anchor="{"end" if step == steps else "middle"}">{step}</text>'
        for step in _step_ticks(steps)
    ]
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 2}" text-anchor="middle">step</text>')
    if reference is not None:
        at = y(reference[1])
        parts.append(
            f'<line class="reference" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" '
            f'y2="{at:.1f}"/><text x="{WIDTH - _RIGHT}" y="{at - 5:.1f}" text-anchor="end">'
            f"{escape(reference[0])}</text>"
        )
    for index, values in enumerate(lists.values()):
        points = " ".join(
            f"{x(step):.1f},{y(v):.1f}" for step, v in enumerate(values) if not log or v > 0
        )
        colour = SERIES[index % len(SERIES)]
        parts.append(f'<polyline style="stroke:{colour}" points="{points}"/>')
    parts.append("</svg>")
    return "".join(parts)


def legend(curves: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Names and colours of curves, in the order `curve_svg` draws them."""
    return [(name, SERIES[index % len(SERIES)]) for index, name in enumerate(curves)]


def _ticks(low: float, high: float) -> list[float]:
    span = max(high - low, abs(high), 1e-9) if high == low else high - low
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= 5)
    first = math.floor(low / step + 0.15)  # a curve may dip a little below the first line
    last = max(math.ceil(high / step), first + 1)
    return [step * index for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first = math.floor(math.log10(low))
    last = max(math.ceil(math.log10(high)), first + 1)
    stride = max(1, math.ceil((last - first) / 5))
    last = first + stride * math.ceil((last - first) / stride)
    return [10.0**power for power in range(first, last + 1, stride)]


def _tick_text(value: float) -> str:
    return "0" if abs(value) < 1e-12 else number(value)


def _step_ticks(steps: int) -> list[int]:
    if steps < 5:
        return list(range(1, steps + 1))
    return [1, *(round(steps * part / 4) for part in (1, 2, 3, 4))]
