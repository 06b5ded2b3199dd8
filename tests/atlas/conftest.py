"""Stores that the tests of atlases share; they only read them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from timmscope import HookedModel, Store, load_model, mine
from timmscope.drawing import to_array
from timmscope.testing import tiny_images, tiny_model

RESNET = "random:resnet18?seed=0&img_size=32"


def write_pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number, image in enumerate(tiny_images(count)):
        Image.fromarray(to_array(image)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("atlas") / "pictures", 8)


@pytest.fixture(scope="session")
def tiny() -> HookedModel:
    return tiny_model()


@pytest.fixture(scope="session")
def store(tiny: HookedModel, pictures: Path) -> Store:
    """Layers with a grid before and after a ReLU, and one of vectors."""
    layers = ["bn1", "act1", "fc"]
    return mine(tiny, pictures, pictures.parent / "tiny.scope", layers=layers, workers=0)


@pytest.fixture(scope="session")
def resnet_store(pictures: Path) -> Store:
    """A store whose model is loaded by its id."""
    folder = pictures.parent / "resnet.scope"
    return mine(load_model(RESNET), pictures, folder, layers=["layer1", "fc"], workers=0)
