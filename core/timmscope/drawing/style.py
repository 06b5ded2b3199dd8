"""timmscope's visual style: typeface, sizes and colours, and functions that fit text to a width."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import matplotlib
import matplotlib.style
from cycler import cycler
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font

TYPEFACE = "DejaVu Sans"
"""Typeface of all text; it comes with matplotlib, so that figures look the same everywhere."""
_FALLBACKS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Noto Sans JP", "Noto Sans SC",
    "Noto Sans KR", "Source Han Sans", "IPAexGothic", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "Droid Sans Fallback", "Hiragino Sans", "PingFang SC", "Hiragino Sans GB",
    "Apple SD Gothic Neo", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic",
    "Noto Sans Devanagari", "Nirmala UI", "Noto Sans Thai", "Leelawadee UI", "Arial Unicode MS",
)  # fmt: skip
"""Typefaces for characters that `TYPEFACE` lacks; those that are installed are used."""

TITLE_PT = 11.0
LABEL_PT = 8.5
SMALL_PT = 7.5
LINE = 1.3
"""Distance between lines of text, in font sizes."""
ASCENT = 0.93
"""Distance from the top of a line to its baseline, in font sizes."""

PAPER = "#ffffff"
INK = "#1b1e23"
MUTED = "#5f6772"
RULE = "#d4d8de"
GOOD = "#00734f"
BAD = "#a8430a"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's colours, which colour-blind readers can distinguish."""

SEQUENTIAL = "inferno"
"""Perceptually uniform colour map for unsigned maps."""

MARGIN_IN = 0.25
GAP_IN = 0.14
MAX_ROWS = 24
"""Largest number of rows of pictures in a figure; a note below says how many are left out."""

_STYLE = {
    "font.size": LABEL_PT,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=list(SERIES)),
    "axes.labelsize": SMALL_PT,
    "axes.formatter.use_mathtext": False,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": SMALL_PT,
    "ytick.labelsize": SMALL_PT,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": SMALL_PT,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "image.interpolation": "nearest",
}


@contextmanager
def theme() -> Iterator[None]:
    """Use matplotlib's defaults with this style inside the context."""
    with matplotlib.style.context(["default", _STYLE, {"font.family": _families()}]):
        yield


_MISSING = "□"
_HINTING = 1.03
"""Factor by which characters at screen resolution are wider than the typeface's metrics."""


@lru_cache
def _families() -> list[str]:
    """Return `TYPEFACE` and the installed fallbacks."""
    installed = set(fontManager.get_font_names())
    return [TYPEFACE, *(name for name in _FALLBACKS if name in installed)]


@lru_cache
def _font(family: str, bold: bool) -> FT2Font:
    weight = "bold" if bold else "normal"
    # matplotlib's get_font would return a shared font, whose size changes while drawing.
    font = FT2Font(findfont(FontProperties(family=family, weight=weight)))
    font.set_size(100, 72)
    return font


@lru_cache(4096)
def _font_of(letter: str, bold: bool) -> FT2Font | None:
    """Return the first font that has a character, or None if no font has it."""
    fonts = (_font(family, bold) for family in _families())
    return next((font for font in fonts if font.get_char_index(ord(letter))), None)


@lru_cache(4096)
def _advance(letter: str, bold: bool) -> float:
    """Return the width of a character, in font sizes; a box stands for a missing one."""
    font = _font_of(letter, bold)
    if font is None:
        return _advance(" " if letter.isspace() else _MISSING, bold)
    return float(font.load_char(ord(letter)).linearHoriAdvance) / 65536 / 100


def text_width(text: str, size_pt: float, *, bold: bool = False) -> float:
    """Return the width of one line of text in inches, without kerning."""
    return sum(_advance(letter, bold) for letter in text) * _HINTING * size_pt / 72


def replace_missing_glyphs(text: str) -> str:
    """Replace each character that no typeface has by a box."""
    return "".join(
        letter if letter.isspace() or _font_of(letter, False) is not None else _MISSING
        for letter in text
    )


def truncate(
    text: str, width_in: float, size_pt: float = LABEL_PT, *, lines: int = 1, bold: bool = False
) -> str:
    """Wrap text at spaces and truncate it with `…` after `lines` lines of a width.

    If the name of a file or layer fills more than half of a line, the middle is cut out instead,
    because names differ at their ends. Each line of a text with line breaks is wrapped separately.

    Args:
        text: the text.
        width_in: width in inches.
        size_pt: font size in points.
        lines: largest number of lines.
        bold: whether the text is bold.
    """
    parts = (_wrap_line(part, width_in, size_pt, lines, bold) for part in text.split("\n"))
    return "\n".join(parts)


def _wrap_line(text: str, width_in: float, size_pt: float, lines: int, bold: bool) -> str:
    words = replace_missing_glyphs(text).split()
    done: list[str] = []
    while words and len(done) < lines:
        last = len(done) == lines - 1
        count = len(words)
        while count > 1 and text_width(" ".join(words[:count]), size_pt, bold=bold) > width_in:
            count -= 1
        line, rest = " ".join(words[:count]), words[count:]
        if (rest and last) or text_width(line, size_pt, bold=bold) > width_in:
            line = _truncate_line(" ".join(words) if last else line, width_in, size_pt, bold)
        done.append(line)
        words = rest
    return "\n".join(done)


_NAME = re.compile(r"[\w)][-_./]\w|\d$")


def _truncate_line(text: str, width_in: float, size_pt: float, bold: bool) -> str:
    names = [word for word in text.split() if _NAME.search(word)]
    if any(text_width(name, size_pt, bold=bold) > width_in / 2 for name in names):
        return truncate_middle(text, width_in, size_pt, bold=bold)
    while text and text_width(text + "…", size_pt, bold=bold) > width_in:
        text = text[:-1]
    return text.rstrip() + "…"


def truncate_middle(
    text: str, width_in: float, size_pt: float = LABEL_PT, *, bold: bool = False
) -> str:
    """Truncate text to one line of a width in its middle, because names differ at their ends."""
    text = " ".join(replace_missing_glyphs(text).split())
    if text_width(text, size_pt, bold=bold) <= width_in:
        return text
    for kept in range(len(text) - 1, 1, -1):
        head = (kept + 1) // 3
        shown = f"{text[:head]}…{text[len(text) - (kept - head) :]}"
        if text_width(shown, size_pt, bold=bold) <= width_in:
            return shown
    return "…"


def format_number(value: float) -> str:
    """Format a number for a caption with three digits: `0.93`, `12.4`, `1.2e-05`."""
    if value != value:
        return "NaN"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{value:.1e}"


def format_share(share: float) -> str:
    """Format a share from 0 to 1 as a percentage, with a decimal near 100 %: `87%`, `99.6%`."""
    return f"{share:.0%}" if share < 0.995 else f"{share:.1%}"


def format_with_error(value: float, error: float) -> str:
    """Format a number and its standard error to two digits of the error: `0.048 ± 0.0031`."""
    if not error > 0 or not math.isfinite(error):
        return f"{format_number(value)} ± {format_number(error)}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return (
        f"{value:.{digits}f} ± {error:.{digits}f}" if digits < 8 else f"{value:.2e} ± {error:.1e}"
    )
