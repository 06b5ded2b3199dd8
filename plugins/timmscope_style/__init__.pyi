# Every public name, once: `__init__.py` imports each of them when it is first used.
from .image_quilting import ImageQuilting as ImageQuilting
from .neural_style import NeuralStyle as NeuralStyle
