"""Pictures of any shape get timm's own evaluation transform, without its memory for thin ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from timmscope import Preprocessing
from timmscope_registry import ImageError


def preprocessing(size: tuple[int, int, int], mode: str, crop_pct: float) -> Preprocessing:
    statistics = (0.5,) * size[0]
    return Preprocessing(size, statistics, statistics, crop_pct=crop_pct, crop_mode=mode)


def timms(prepare: Preprocessing, image: Image.Image) -> torch.Tensor:
    transform = create_transform(
        input_size=prepare.input_size,
        is_training=False,
        mean=prepare.mean,
        std=prepare.std,
        interpolation=prepare.interpolation,
        crop_pct=prepare.crop_pct,
        crop_mode=prepare.crop_mode,
        normalize=False,
    )
    return transform(image) / 255


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


SIZES = [(3, 32, 32), (3, 24, 40)]
PERCENT = [0.875, 0.9, 1.0]


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop_pct", PERCENT)
def test_ordinary_pictures_are_bit_identical_to_timms(
    size: tuple[int, int, int], mode: str, crop_pct: float
) -> None:
    prepare = preprocessing(size, mode, crop_pct)
    for shape in ((30, 50), (50, 31), (33, 33), (16, 256), (256, 17)):
        image = noise(*shape)
        assert torch.equal(prepare(image), timms(prepare, image))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop_pct", PERCENT)
def test_thin_pictures_differ_from_timms_by_rounding_only(
    size: tuple[int, int, int], crop_pct: float
) -> None:
    prepare = preprocessing(size, "center", crop_pct)
    for shape in ((3, 100), (3, 101), (3, 103), (1, 77), (200, 7), (90, 2), (333, 5)):
        image = noise(*shape)
        gap = (prepare(image) - timms(prepare, image)).abs()
        assert gap.max() <= 1.001 / 255
        assert (gap > 0).float().mean() < 0.01  # where a sum of weights lies on the edge of a level


@pytest.mark.parametrize("shape", [(1, 40_000), (40_000, 1)])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_a_picture_of_one_pixel_by_many_takes_little_memory(
    shape: tuple[int, int], mode: str
) -> None:
    prepare = preprocessing((3, 224, 224), mode, 0.875)
    sizes = []
    resize = Image.Image.resize

    def watched(image: Image.Image, size: tuple[int, int], *more: object) -> Image.Image:
        sizes.append(size)
        return resize(image, size, *more)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", watched)
        got = prepare(Image.new("RGB", shape, (51, 102, 204)))
    assert max(width * height for width, height in sizes) < 300 * 300
    middle = got[:, 112, 112] if mode != "border" else got[:, got.std(0) > 0.1][:, 0]
    torch.testing.assert_close(middle, torch.tensor([0.2, 0.4, 0.8]))


def test_a_picture_in_memory_gives_what_its_file_gives(tmp_path: Path) -> None:
    from timmscope import load_model

    model = load_model("random:resnet18?num_classes=2&img_size=32")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(60, 40).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16).save(tmp_path / "16.png")
    noise(40, 40).convert("LA").save(tmp_path / "alpha.png")
    for path in tmp_path.iterdir():
        expected = model.images(path)
        with Image.open(path) as picture:
            assert torch.equal(model.preprocess(picture), expected[0])
        with Image.open(path) as picture:
            assert torch.equal(model.images(picture), expected)


def test_a_damaged_picture_in_memory_is_one_error(tmp_path: Path) -> None:
    noise(60, 40).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:3000])
    with Image.open(tmp_path / "cut.png") as picture, pytest.raises(ImageError, match="decoded"):
        preprocessing((3, 32, 32), "center", 0.9)(picture)
