"""`jpeg` is Pillow's, byte for byte, and `randomized-resize` that of a slow second version."""

from __future__ import annotations

import io

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from timmscope import HookedModel, UnsupportedModel, open_image, technique
from timmscope.models.defence import defended_images
from timmscope_defence import JPEG, RandomizedResize


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    pixels = np.asarray(Image.fromarray(skimage.data.astronaut()).resize((72, 50)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]  # (1, 3, 50, 72) uint8


# JPEG


@pytest.mark.parametrize("quality", [1, 50, 75, 100])
def test_jpeg_is_what_pillow_writes_and_reads(quality, photo, tmp_path):
    file = tmp_path / "photo.jpg"
    Image.fromarray(photo[0].permute(1, 2, 0).numpy()).save(file, quality=quality)
    expected = torch.from_numpy(np.asarray(open_image(file)).copy()).permute(2, 0, 1)
    seen = defended_images([JPEG(quality=quality)], photo / 255)
    assert torch.equal((seen[0] * 255).round().byte(), expected)
    assert torch.equal(seen[0], expected / 255)


def test_jpeg_rounds_to_8_bits_and_clips_first(photo):
    exact = defended_images([JPEG()], photo / 255)
    nearby = photo / 255 + 0.49 / 255 * torch.sign(torch.rand(photo.shape) - 0.5)
    assert torch.equal(defended_images([JPEG()], nearby), exact)
    wide = torch.where(photo == 255, 1.7, torch.where(photo == 0, -0.3, photo / 255))
    assert torch.equal(defended_images([JPEG()], wide), exact)


def test_jpeg_of_one_channel_is_a_grey_file(photo):
    grey = photo[:, :1] / 255
    file = io.BytesIO()
    Image.fromarray(photo[0, 0].numpy()).save(file, "JPEG", quality=75)
    expected = torch.from_numpy(np.asarray(Image.open(file)).copy())
    assert torch.equal((defended_images([JPEG()], grey)[0, 0] * 255).round().byte(), expected)


def test_jpeg_refuses_other_channels_in_one_line():
    with pytest.raises(UnsupportedModel, match="1 or 3 channels, and these have 4"):
        defended_images([JPEG()], torch.rand(1, 4, 8, 8))


def test_jpeg_removes_a_small_change_of_high_frequency():
    """Each DCT coefficient of the pattern is below half a quantisation step at quality 50."""
    checker = (torch.arange(16)[:, None] + torch.arange(24)) % 2 * 2 - 1
    flat = torch.full((1, 3, 16, 24), 128 / 255)
    changed = flat + 2 / 255 * checker
    assert torch.equal(defended_images([JPEG(quality=50)], changed), flat)


# Randomised resizing


def slow(image: np.ndarray, smallest: float, numbers: list[float]) -> np.ndarray:
    """Bilinear interpolation by hand, pixel centres at halves; image (C, H, W)."""
    height, width = image.shape[1:]
    share = smallest + (1 - smallest) * numbers[0]
    rows, columns = int(np.ceil(height * share)), int(np.ceil(width * share))
    top, left = int(numbers[1] * (height - rows + 1)), int(numbers[2] * (width - columns + 1))
    out = np.zeros_like(image)
    for y in range(rows):
        for x in range(columns):
            v = min(max((y + 0.5) * height / rows - 0.5, 0), height - 1)
            u = min(max((x + 0.5) * width / columns - 0.5, 0), width - 1)
            a, b = int(v), int(u)
            c, d = min(a + 1, height - 1), min(b + 1, width - 1)
            fv, fu = v - a, u - b
            out[:, top + y, left + x] = (1 - fv) * (
                (1 - fu) * image[:, a, b] + fu * image[:, a, d]
            ) + fv * ((1 - fu) * image[:, c, b] + fu * image[:, c, d])
    return out


@pytest.mark.parametrize("smallest", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_resizing_is_that_of_a_slow_version(smallest, seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 2, 13, 19, generator=generator, dtype=torch.float64)
    numbers = torch.rand(3, generator=torch.Generator().manual_seed(seed + 10)).tolist()
    given = [torch.Generator().manual_seed(seed + 10)]
    found = RandomizedResize(smallest=smallest).transform(image, given)
    np.testing.assert_allclose(found[0], slow(image[0].numpy(), smallest, numbers), atol=1e-9)
    if smallest == 1:
        assert torch.equal(found, image)


def test_sizes_and_places_are_uniform():
    white = torch.ones(1, 1, 40, 60)
    sizes, tops = [], []
    for seed in range(400):
        seen = RandomizedResize(smallest=0.5).transform(
            white, [torch.Generator().manual_seed(seed)]
        )
        rows = seen[0, 0].amax(1).nonzero().flatten()
        sizes.append(len(rows))
        tops.append(float(rows[0]) / max(40 - len(rows), 1))
        assert float(seen.max()) <= 1 + 1e-6
    assert set(sizes) == set(range(21, 41))
    assert np.mean(sizes) == pytest.approx(30.5, abs=1)
    assert np.mean(tops) == pytest.approx(0.5, abs=0.06)


# Figures on a real network


@pytest.mark.slow
def test_jpeg_hides_an_attack_that_does_not_know_it_and_none_that_does(lite0: HookedModel) -> None:
    from pathlib import Path

    foolbox = pytest.importorskip("foolbox")
    files = sorted((Path(foolbox.__file__).parent / "data").glob("imagenet_*.jpg"))[:12]
    labels = torch.tensor([int(file.stem.rpartition("_")[2]) for file in files])
    images = lite0.images(files)
    behind = lite0.defended("jpeg quality=75")
    pgd = technique("pgd")(steps=10, epsilon=1 / 255, random_start=False)
    bare, adaptive = pgd(lite0, images, labels), pgd(behind, images, labels)
    with torch.no_grad():
        oblivious = float((behind(bare.images).argmax(1) == labels).float().mean())
    assert adaptive.robust_accuracy <= oblivious
    one_image = 1 / len(images) + 1e-6  # shares are float32
    assert adaptive.robust_accuracy <= bare.robust_accuracy + one_image
