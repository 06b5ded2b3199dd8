"""Loads the digits networks that are committed as test data."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from tests.digits.images import write_digits
from torch import Tensor

from timmscope import HookedModel, load_model
from timmscope_registry import get_registry

NETWORKS = Path(__file__).parent / "networks"
"""One folder per network, as a training leaves it."""
_PLUGIN = Path(__file__).parent / "plugin.py"


def register() -> None:
    """Make `digits:cnn?seed=0` known to this process, unless it is."""
    if all(entry.spec.scheme != "digits" for entry in get_registry().model_sources()):
        get_registry().load_file(_PLUGIN)


def digits_network(name: str) -> HookedModel:
    """Load a trained network: `standard`, `fast`, `pgd`, `trades` or `ibp`."""
    register()
    return load_model(f"file:{NETWORKS / name}")


def held_out_digits(count: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the first held-out digits, `(n, 1, 8, 8)` in [0, 1], and their labels.

    Args:
        count: number of digits; by default all 397.
    """
    with tempfile.TemporaryDirectory() as folder:
        _, file = write_digits(Path(folder), trained=1)
        with np.load(file) as arrays:
            images = torch.from_numpy(arrays["images"][:count])[:, None].float() / 255
            labels = torch.from_numpy(arrays["labels"][:count]).long()
    return images, labels


def digits_read_right(name: str, count: int) -> tuple[HookedModel, Tensor, Tensor]:
    """Return a trained network, and the first held-out digits that it reads right."""
    model = digits_network(name)
    images, labels = held_out_digits()
    right = (model(images).argmax(1) == labels).nonzero().flatten()[:count]
    return model, images[right], labels[right]
