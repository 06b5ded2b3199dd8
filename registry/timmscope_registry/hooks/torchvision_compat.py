"""Makes `import torchvision` work with a torch build that it was not compiled for.

timm needs only torchvision's image transforms, but importing torchvision registers its compiled
operators. A CPU-only torch cannot load those of a CUDA torchvision, and the import fails with
``operator torchvision::nms does not exist``, although timmscope needs none of them. Declaring the
two operators that the import looks up is enough.
"""

from __future__ import annotations

import importlib
import sys

import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")
_declared: list[torch.library.Library] = []  # an operator lives as long as its library object


def ensure_torchvision() -> None:
    """Import torchvision; if its compiled operators cannot load, declare the missing ones first.

    Does nothing where the import works, or where torchvision is not installed.
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
        library.define(operator + _SIGNATURE)
    _declared.append(library)
    importlib.import_module("torchvision")
