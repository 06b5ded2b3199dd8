"""Draws figures in timmscope's style, sized by their content and safe for colour-blind readers.

A plugin draws with these functions so that its figures look like all others. They take tensors or
arrays and return matplotlib `Figure` objects, image tensors or an HTML page. They never use pyplot
or change the global rc settings.
"""

from timmscope.short_names import short_names

from .animation import FPS, write_animation
from .canvas import Canvas, line_height
from .curves import curves_figure
from .heat import BY_COLOUR, HeatScale, around_grey, colour_bar, colourise, overlay
from .html_map import PointMap, map_page
from .map_colours import (
    CONTINUOUS,
    OTHER,
    Group,
    group_by_class,
    group_by_number,
    number_range,
    range_texts,
)
from .pixels import png_bytes, to_array, write_png
from .sheet import sheet_figure
from .style import (
    GAP_IN,
    INK,
    LABEL_PT,
    MARGIN_IN,
    MAX_ROWS,
    MUTED,
    PAPER,
    RULE,
    SEQUENTIAL,
    SERIES,
    SMALL_PT,
    TITLE_PT,
    format_number,
    format_with_error,
    replace_missing_glyphs,
    text_width,
    theme,
    truncate,
    truncate_middle,
)
from .table import table_figure

__all__ = [
    "BY_COLOUR",
    "CONTINUOUS",
    "FPS",
    "GAP_IN",
    "INK",
    "LABEL_PT",
    "MARGIN_IN",
    "MAX_ROWS",
    "MUTED",
    "OTHER",
    "PAPER",
    "RULE",
    "SEQUENTIAL",
    "SERIES",
    "SMALL_PT",
    "TITLE_PT",
    "Canvas",
    "Group",
    "HeatScale",
    "PointMap",
    "around_grey",
    "colour_bar",
    "colourise",
    "curves_figure",
    "format_number",
    "format_with_error",
    "group_by_class",
    "group_by_number",
    "line_height",
    "map_page",
    "number_range",
    "overlay",
    "png_bytes",
    "range_texts",
    "replace_missing_glyphs",
    "sheet_figure",
    "short_names",
    "table_figure",
    "text_width",
    "theme",
    "to_array",
    "truncate",
    "truncate_middle",
    "write_animation",
    "write_png",
]
