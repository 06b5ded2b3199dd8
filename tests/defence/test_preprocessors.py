"""Filters and rounding before the model, beside SciPy, scikit-image and values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import data
from skimage.restoration import denoise_tv_chambolle
from tests.digits.load import digits_network, held_out_digits
from torch import Tensor

from timmscope import HookedModel, ParameterError, UnsupportedModel, load_model, technique
from timmscope_defence import BitDepth, GaussianFilter, MedianFilter, TotalVariation


@pytest.fixture(scope="module")
def photograph() -> Tensor:
    """Two crops of a photograph, `(2, 3, 40, 56)`."""
    pixels = torch.from_numpy(data.astronaut()).permute(2, 0, 1).double() / 255
    return torch.stack([pixels[:, 100:140, 200:256], pixels[:, 0:40, 0:56]])


def by_channel(images: Tensor, function) -> Tensor:
    """Apply a function of SciPy to each channel of each image."""
    flat = images.flatten(0, 1).numpy()
    return torch.from_numpy(np.stack([function(each) for each in flat])).view_as(images)


@pytest.mark.parametrize("side", [3, 5])
def test_the_median_filter_is_scipy_s(side, photograph):
    found = MedianFilter(side=side).transform(photograph, [])
    expected = by_channel(photograph, lambda x: ndimage.median_filter(x, side, mode="mirror"))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.5])
def test_the_gaussian_filter_is_scipy_s(sigma, photograph):
    found = GaussianFilter(sigma=sigma).transform(photograph, [])
    expected = by_channel(photograph, lambda x: ndimage.gaussian_filter(x, sigma, mode="mirror"))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_bits_round_to_levels():
    values = torch.tensor([0.0, 0.1, 0.17, 0.5, 0.83, 0.84, 1.0]).view(1, 1, 1, -1)
    found = BitDepth(bits=2).transform(values, [])  # levels 0, 1/3, 2/3, 1
    thirds = (found * 3).flatten().tolist()
    assert thirds == pytest.approx([0, 0, 1, 2, 2, 3, 3])
    assert BitDepth(bits=1).transform(values, []).flatten().tolist() == [0, 0, 0, 0, 1, 1, 1]
    levels = torch.arange(256).view(1, 1, 16, 16) / 255
    torch.testing.assert_close(BitDepth(bits=8).transform(levels, []), levels)


def variation_cost(found: Tensor, images: Tensor, weight: float) -> float:
    """The cost of total variation denoising, pixel by pixel."""
    total = 0.0
    for new, old in zip(found.flatten(0, 1).tolist(), images.flatten(0, 1).tolist(), strict=True):
        for y, row in enumerate(new):
            for x, value in enumerate(row):
                below = new[y + 1][x] - value if y + 1 < len(new) else 0.0
                right = row[x + 1] - value if x + 1 < len(row) else 0.0
                total += (value - old[y][x]) ** 2 / 2 + weight * (below**2 + right**2) ** 0.5
    return total


def test_total_variation_is_scikit_image_s(photograph):
    found = TotalVariation(weight=0.1, steps=500).transform(photograph, [])
    expected = by_channel(
        photograph, lambda x: denoise_tv_chambolle(x, weight=0.1, eps=1e-9, max_num_iter=5000)
    )
    least = variation_cost(expected, photograph, 0.1)
    assert variation_cost(found, photograph, 0.1) <= least * (1 + 1e-4)
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0)
    quick = TotalVariation(weight=0.1).transform(photograph, [])
    assert variation_cost(quick, photograph, 0.1) <= least * 1.02


def test_total_variation_of_a_step_lowers_its_height():
    # Two halves of width w: each moves by λ / w towards the other, as long as they do not meet.
    image = torch.cat([torch.full((1, 1, 4, 5), 0.2), torch.full((1, 1, 4, 5), 0.8)], 3).double()
    found = TotalVariation(weight=0.5, steps=2000).transform(image, [])
    expected = torch.where(image < 0.5, image + 0.1, image - 0.1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "defence", [BitDepth(), GaussianFilter(), MedianFilter(), TotalVariation(steps=5)]
)
def test_the_gradient_is_what_the_defence_promises(defence):
    model = load_model("random:test_resnet?seed=0&img_size=32")
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    _, gradient = model.defended(defence).gradient(images, "class:3")
    seen = defence.transform(images, [])
    if defence.backward == "identity":
        _, expected = model.gradient(seen, "class:3")
    else:
        leaf = images.clone().requires_grad_()
        model(defence.transform(leaf, []))[0, 3].backward()
        expected = leaf.grad
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


def test_filters_larger_than_the_images_are_refused():
    images = torch.rand(1, 1, 4, 4)
    for defence in (GaussianFilter(sigma=2), MedianFilter(side=9)):
        with pytest.raises(UnsupportedModel, match="the images are 4×4: take a smaller filter"):
            defence.transform(images, [])
    with pytest.raises(ParameterError, match="odd side"):
        MedianFilter(side=4)


@pytest.fixture(scope="module")
def digits() -> tuple[HookedModel, Tensor, Tensor]:
    """A network and digits."""
    return digits_network("standard"), *held_out_digits(100)


class TestDigits:
    def test_attacks_through_a_defence_break_at_least_what_oblivious_ones_break(self, digits):
        model, images, labels = digits
        attack = technique("pgd")(epsilon=0.1, steps=20, random_start=False)
        oblivious = attack(model, images, labels).images
        for defence in ("bit-depth bits=2", "median-filter", "gaussian-filter sigma=0.5"):
            behind = model.defended([defence])
            left = (behind(oblivious).argmax(1) == labels).float().mean()
            adaptive = attack(behind, images, labels).robust_accuracy
            assert adaptive <= float(left) + 0.01, defence

    def test_three_weak_filters_together_are_as_weak_as_the_best_of_them(self, digits):
        model, images, labels = digits
        attack = technique("pgd")(epsilon=0.1, steps=20, random_start=False)
        name = model.id
        defences = ["bit-depth bits=2", "median-filter", "gaussian-filter sigma=0.5"]
        alone = [attack(model.defended([d]), images, labels).robust_accuracy for d in defences]
        members = "|".join(f"({name} + {defence})" for defence in defences)
        together = attack(load_model(f"ensemble:{members}"), images, labels).robust_accuracy
        assert together <= max(alone) + 0.05
