"""Adversarial patches: shapes, places, and a model on which area alone decides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from timmscope import HookedModel, load_result, technique
from timmscope.testing import tiny_images, tiny_model
from timmscope_attack.patch_masks import pasted, patch_mask, patch_places

PATCH = technique("adversarial-patch")
SHAPES = ["disc", "square", "eyeglasses", "stickers"]


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(count)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_a_shape_covers_as_many_pixels_as_are_allowed(shape, size):
    for share in (0.01, 0.05, 0.15):
        pixels = int(share * size[0] * size[1])
        mask = patch_mask(shape, size, pixels)
        assert mask.shape == (1, *size)
        assert set(mask.unique().tolist()) == {0, 1}
        assert int(mask.sum()) <= pixels
        if share == 0.15 and shape == "eyeglasses":
            assert int(mask.any(1).sum()) >= 0.9 * size[1]  # as large as fits
        elif pixels >= 150:  # pixels are coarse for a smaller one
            assert int(mask.sum()) >= 0.7 * pixels
        assert torch.equal(mask, mask.flip(1)) or shape == "disc"
        assert torch.equal(mask, mask.flip(2))
    assert int(patch_mask(shape, size, 0).sum()) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_patch_is_inside_the_image_wherever_it_is(shape):
    mask = patch_mask(shape, (60, 90), 400)
    places = patch_places(shape, mask, generators(50))
    if shape == "disc":
        whole = pasted(
            torch.zeros(50, 1, 60, 90),
            mask,
            mask,
            patch_places(shape, mask, generators(50), scale=1.0),
        )
        assert whole.flatten(1).sum(1) / mask.sum() == pytest.approx(1, abs=0.02)
    black = torch.zeros(50, 1, 60, 90)
    seen = pasted(black, mask, mask, places)
    area = seen.flatten(1).sum(1) / mask.sum()
    smallest = 0.95 if shape in ("eyeglasses", "stickers") else 0.7
    assert float(area.max()) <= 1.03
    assert float(area.min()) >= smallest**2 - 0.03
    rows, columns = seen[:, 0].amax(2), seen[:, 0].amax(1)  # (50, 60), (50, 90)
    middles = torch.stack([(side > 0.5).float().argmax(1).float() for side in (rows, columns)], 1)
    spread = middles.std(0)
    if shape in ("disc", "square"):
        assert bool((spread > 8).all())  # anywhere
    else:
        assert bool((spread < 4).all())


def test_a_patch_replaces_the_pixels_below_it():
    images = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    mask = patch_mask("square", (9, 9), 9)
    patch = torch.tensor([1.0, 0.0, 0.5]).view(3, 1, 1) * mask
    still = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]).expand(2, 2, 3)
    found = pasted(images, patch, mask, still)
    expected = images.clone()
    expected[:, :, 3:6, 3:6] = torch.tensor([1.0, 0.0, 0.5]).view(3, 1, 1)
    assert torch.allclose(found, expected, atol=1e-6)
    moved = torch.tensor([[[1.0, 0, -2 * 2 / 9], [0, 1, 2 * 3 / 9]]]).expand(2, 2, 3)
    expected = images.clone()  # 2 px to the right, 3 px up
    expected[:, :, 0:3, 5:8] = torch.tensor([1.0, 0.0, 0.5]).view(3, 1, 1)
    assert torch.allclose(pasted(images, patch, mask, moved), expected, atol=1e-5)


class Reddish(nn.Module):
    """Class 1 if more than a share of the image is red, and nothing else."""

    num_classes = 2

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, x: Tensor) -> Tensor:
        red = x[:, 0] - x[:, 1] / 2 - x[:, 2] / 2
        score = self.scale * (red.mean((1, 2)) - self.share)
        return torch.stack([-score, score], 1)


def test_success_rises_with_the_area_as_the_model_says(tmp_path):
    model = HookedModel(Reddish(0.05), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 32, 32))
    images = torch.full((40, 3, 32, 32), 0.3)
    images += 0.05 * torch.rand(40, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    rates = {}
    for pixels in (50, 56, 120):  # of 1024
        result = PATCH(epsilon=pixels, epochs=6, step_size=0.3)(
            model, images, target=1, held_out=0.5
        )
        rates[pixels] = result.rate()
        colour = result.perturbation[:, result.mask[0] > 0].mean(1)
        assert colour.tolist() == pytest.approx([1, 0, 0], abs=1e-6)
        assert result.size == int(result.mask.sum()) <= pixels
    assert rates[50] == 0  # 0.049 of the image at most
    assert rates[56] > 0
    assert rates[120] == 1
    assert result.noise_rate() == 0
    assert result.norm == "l0"
    assert result.summary()[0]["l0"] == result.size
    rows = result.size_table()
    assert [row["area"] * 1024 / result.size for row in rows] == [0.25, 0.5, 0.75, 1]
    red = 1024 * 0.05 / result.size  # the share of its area at which the patch is just enough
    assert [row["fooling_rate"] for row in rows] == [share > red for share in (0.25, 0.5, 0.75, 1)]
    assert [row["noise_rate"] for row in rows] == [0, 0, 0, 0]
    kept = load_result(result.save(tmp_path))
    assert kept.size_table() == rows
    assert torch.equal(kept.mask, result.mask)
    assert torch.equal(kept.changed, result.changed)
    middle = result.apply(images[:1])[0]
    covered = result.mask[0] > 0
    assert torch.equal(middle[:, covered], result.perturbation[:, covered])
    assert torch.equal(middle[:, ~covered], images[0][:, ~covered])


def test_pictures_show_the_images_as_they_were_measured():
    model = HookedModel(Reddish(0.05), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 32, 32))
    images = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(2)) / 3
    result = PATCH(epsilon=120, epochs=2)(model, images, target=1)
    with torch.no_grad():
        told = model(result.changed).argmax(1)
    assert torch.equal(told, result.after[result.shown])
    again = PATCH(epsilon=120, epochs=2)(model, images, target=1, batch_size=3)
    assert torch.equal(again.perturbation, result.perturbation)
    assert torch.allclose(again.changed, result.changed, atol=1e-6)
    other = PATCH(epsilon=120, epochs=2)(model, images, target=1, seed=1)
    assert not torch.equal(other.changed, result.changed)
    assert not (result.changed == result.apply(result.originals)).flatten(1).all(1).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_greyscale_models_and_objectives_are_attacked_with_any_shape(shape):
    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    model = HookedModel(network, mean=(0,), std=(1,), input_size=(1, 16, 16))
    images = torch.rand(12, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        value = float(model(images)[:, 2].median())
    result = PATCH(shape=shape, epsilon=40, epochs=4)(
        model, images, objective="class:2", value=value
    )
    assert result.perturbation.shape == (1, 16, 16)
    assert result.scores_after is not None
    assert float(result.scores_after.mean()) > float(result.scores_before.mean())


def test_a_mask_of_ones_own_is_where_it_was_drawn():
    drawn = torch.zeros(1, 3, 32, 32)
    drawn[..., 20:28, 4:14] = 1.0
    made = PATCH(mask_picture=drawn, epochs=1, batch=6)(tiny_model("cnn"), tiny_images(12))
    covered = (made.perturbation.abs().sum(0) > 0).nonzero()
    assert covered.amin(0).tolist() == [20, 4]
    assert covered.amax(0).tolist() == [27, 13]
    assert len(covered) == 80
