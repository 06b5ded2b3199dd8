"""Makes `import torchvision` work beside a torch build that it was not compiled for.

timm imports torchvision for its image transforms alone, yet torchvision registers its compiled
operators while it is imported. A CPU-only torch beside a CUDA torchvision cannot load them, and the
import dies with ``operator torchvision::nms does not exist`` although nothing here needs them.
Declaring the two schemas that the import asks for is enough.
"""

from __future__ import annotations

import importlib
import sys

import torch

_DETECTION = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")
_declared: list[torch.library.Library] = []  # an operator lives as long as its library object


def ensure_torchvision() -> None:
    """Import torchvision, declaring the operators it lacks when its binary part cannot load.

    Does nothing on a healthy machine, nor where torchvision is not installed at all.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "torchvision::" not in str(error) or "does not exist" not in str(error):
            raise
    else:
        return
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in _OPERATORS:
        library.define(operator + _DETECTION)
    _declared.append(library)
    importlib.import_module("torchvision")
