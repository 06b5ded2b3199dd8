"""Pictures of results: one visual style, sized from the content, safe for colour-blind readers.

Everything here takes plain tensors and returns matplotlib `Figure` objects or image tensors;
pyplot and the global rc settings are never touched.
"""

from timmscope.drawing.curves import style_figure, synthesis_figure
from timmscope.drawing.heat import HeatScale, around_grey, attribution_figure, colourise, overlay
from timmscope.drawing.matrix import matrix_figure
from timmscope.drawing.pixels import png_bytes, to_array, write_png
from timmscope.drawing.scores import scores_figure
from timmscope.drawing.sheet import sheet_figure
from timmscope.drawing.table import table_figure

__all__ = [
    "HeatScale",
    "around_grey",
    "attribution_figure",
    "colourise",
    "matrix_figure",
    "overlay",
    "png_bytes",
    "scores_figure",
    "sheet_figure",
    "style_figure",
    "synthesis_figure",
    "table_figure",
    "to_array",
    "write_png",
]
