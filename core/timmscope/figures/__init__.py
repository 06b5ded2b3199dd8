"""Pictures of results: one visual style, sized from the content, safe for colour-blind readers.

Everything here takes plain tensors and returns matplotlib `Figure` objects or image tensors;
pyplot and the global rc settings are never touched.
"""

from timmscope.figures.attack import attack_figure
from timmscope.figures.comparison import comparison_figure
from timmscope.figures.curves import style_figure, synthesis_figure
from timmscope.figures.datasets import dataset_figure
from timmscope.figures.heat import (
    HeatScale,
    around_grey,
    attribution_figure,
    colourise,
    overlay,
)
from timmscope.figures.matrix import matrix_figure
from timmscope.figures.pixels import png_bytes, to_array, write_png
from timmscope.figures.scores import scores_figure
from timmscope.figures.sheet import sheet_figure
from timmscope.figures.table import table_figure

__all__ = [
    "HeatScale",
    "around_grey",
    "attack_figure",
    "attribution_figure",
    "colourise",
    "comparison_figure",
    "dataset_figure",
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
