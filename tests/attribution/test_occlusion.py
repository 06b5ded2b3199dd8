"""Occlusion against windows slid by hand, linear models, a model of one pixel, and captum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import Occlusion as CaptumOcclusion
from torch import nn

from timmscope import (
    HookedModel,
    ParameterError,
    TechniqueError,
    class_logit,
    load_model,
    load_result,
    technique,
)
from timmscope.techniques.session import session

Occlusion = technique("occlusion")


class OnePixel(nn.Module):
    """Sees the red value of one pixel, and nothing else."""

    num_classes = 2

    def __init__(self, y: int, x: int) -> None:
        super().__init__()
        self.y, self.x = y, x

    def forward(self, images):
        seen = images[:, 0, self.y, self.x]
        return torch.stack([seen, -2 * seen], 1)


@pytest.fixture
def one_pixel() -> HookedModel:
    return HookedModel(OnePixel(2, 5), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 8, 8))


def slid_by_hand(model, image, index, patch, stride, cover, absolute=False):
    """Mean drop over the windows that cover each pixel, one forward a window, plain loops."""
    _, height, width = image.shape
    base = float(model(image[None])[0, index].detach())
    total, count = np.zeros((height, width)), np.zeros((height, width))
    top = 0
    while True:
        left = 0
        while True:
            covered = image.clone()
            covered[:, top : top + patch, left : left + patch] = cover[
                :, top : top + patch, left : left + patch
            ]
            drop = base - float(model(covered[None])[0, index].detach())
            total[top : top + patch, left : left + patch] += abs(drop) if absolute else drop
            count[top : top + patch, left : left + patch] += 1
            if left + patch >= width:
                break
            left += stride
        if top + patch >= height:
            break
        top += stride
    return torch.from_numpy(total / count)


def close(ours, theirs):
    return torch.allclose(ours.double(), theirs.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("patch", "stride"), [(1, 1), (3, 2), (3, 3), (5, 3), (7, 4), (8, 8)])
@pytest.mark.parametrize("absolute", [False, True])
def test_windows_slid_by_hand_also_where_the_stride_does_not_divide(
    pooled_linear, noise, patch, stride, absolute
):
    attribution = Occlusion(patch_px=patch, stride_px=stride, baseline="zero", absolute=absolute)
    ours = attribution(pooled_linear, noise, class_logit([0, 3, 1])).raw
    for row, index in enumerate([0, 3, 1]):
        expected = slid_by_hand(
            pooled_linear, noise[row], index, patch, stride, torch.zeros(3, 8, 8), absolute
        )
        assert close(ours[row], expected)


def test_oblong_images_have_windows_of_their_own_along_each_side(pooled_linear):
    image = torch.rand(3, 8, 14, dtype=torch.float64)
    ours = Occlusion(patch_px=4, stride_px=3, baseline="zero")(pooled_linear, image[None], 2).raw[0]
    cover = torch.zeros_like(image)
    assert close(ours, slid_by_hand(pooled_linear, image, 2, 4, 3, cover))


def test_a_linear_model_loses_the_weighted_patch(linear_model):
    image = torch.rand(1, 3, 4, 4)
    weight = linear_model.module.fc.weight.detach().view(-1, 3, 4, 4)[1]
    ours = Occlusion(patch_px=1, stride_px=1, baseline="zero")(linear_model, image, 1).raw[0]
    assert close(ours, (weight * image[0]).sum(0))
    blocks = Occlusion(patch_px=2, stride_px=2, baseline="zero")(linear_model, image, 1).raw[0]
    expected = (weight * image[0]).sum(0).view(2, 2, 2, 2).sum((1, 3))
    assert close(blocks, expected.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_a_model_of_one_pixel_is_mapped_to_that_pixel(one_pixel):
    image = torch.full((1, 3, 8, 8), 0.25)
    image[0, 0, 2, 5] = 0.75
    raw = Occlusion(patch_px=1, stride_px=1, baseline="zero")(one_pixel, image, 0).raw[0]
    expected = torch.zeros(8, 8)
    expected[2, 5] = 0.75
    assert close(raw, expected)
    against = Occlusion(patch_px=1, stride_px=1, baseline="zero")(one_pixel, image, 1).raw[0]
    assert close(against, -2 * expected)
    size = Occlusion(patch_px=1, stride_px=1, baseline="zero", absolute=True)
    assert close(size(one_pixel, image, 1).raw[0], 2 * expected)


def test_each_baseline_is_what_it_says(one_pixel):
    model = HookedModel(OnePixel(2, 5), mean=(0.3, 0.5, 0.1), std=(1, 1, 1), input_size=(3, 8, 8))
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    seen = float(image[0, 0, 2, 5])

    def drop(baseline, **settings):
        whole = Occlusion(patch_px=8, baseline=baseline, **settings)
        return float(whole(model, image, 0, seed=4).raw[0, 2, 5])

    assert drop("zero") == pytest.approx(seen, abs=1e-6)
    assert drop("grey") == pytest.approx(seen - 0.5, abs=1e-6)
    assert drop("mean") == pytest.approx(seen - 0.3, abs=1e-6)
    with session(4, [0]):
        from timmscope import noise_like

        noise = float(noise_like(image, "uniform")[0, 0, 2, 5])
    assert drop("noise") == pytest.approx(seen - noise, abs=1e-6)
    ramp = torch.linspace(0, 1, 8).expand(1, 3, 8, 8).contiguous()
    blurred = Occlusion(patch_px=2, stride_px=2, baseline="blur")(model, ramp, 0).raw[0]
    weights = torch.exp(-0.5 * torch.arange(-3, 4, dtype=torch.float64) ** 2)
    mirrored = [2, 3, 4, 5, 6, 7, 6]  # columns around 5, mirrored at the last one
    expected = float((weights / weights.sum() * ramp[0, 0, 0, mirrored]).sum())
    assert float(blurred[2, 5]) == pytest.approx(float(ramp[0, 0, 2, 5]) - expected, abs=1e-5)


def test_smooth_maps_are_linear_between_the_centres_of_the_patches(pooled_linear, noise):
    plain = Occlusion(patch_px=4, stride_px=4, baseline="zero")(pooled_linear, noise, 1).raw
    smooth = Occlusion(patch_px=4, stride_px=4, baseline="zero", smooth=True)
    ours = smooth(pooled_linear, noise, 1).raw
    centres, pixels = [2.0, 6.0], np.arange(8) + 0.5
    for row in range(3):
        grid = plain[row, ::4, ::4].numpy()  # the drop of each of the 2 × 2 patches
        down = np.stack([np.interp(pixels, centres, grid[:, x]) for x in range(2)], 1)
        both = np.stack([np.interp(pixels, centres, line) for line in down])
        assert close(ours[row], torch.from_numpy(both))


def test_clipped_patches_have_their_centre_where_they_are(pooled_linear, noise):
    ours = Occlusion(patch_px=3, stride_px=3, baseline="zero", smooth=True)
    plain = Occlusion(patch_px=3, stride_px=3, baseline="zero")(pooled_linear, noise, 1).raw[0]
    grid = plain[[1, 4, 7]][:, [1, 4, 7]].numpy()  # windows 0–3, 3–6 and 6–8
    centres, pixels = [1.5, 4.5, 7.0], np.arange(8) + 0.5
    down = np.stack([np.interp(pixels, centres, grid[:, x]) for x in range(3)], 1)
    both = np.stack([np.interp(pixels, centres, line) for line in down])
    assert close(ours(pooled_linear, noise, 1).raw[0], torch.from_numpy(both))


@pytest.mark.parametrize(("patch", "stride"), [(16, 8), (15, 11), (32, 32)])
@pytest.mark.parametrize("name", ["resnet18", "vgg11", "densenet121", "lite0"])
def test_occlusion_is_captums(name, patch, stride, small_case):
    model, images, classes, _ = small_case(name)
    images, classes = images[:2], classes[:2]
    images = images[:, :, :60] if name != "vgg11" else images  # oblong, where the model takes it
    ours = Occlusion(patch_px=patch, stride_px=stride, baseline="mean")
    found = ours(model, images, class_logit(classes)).raw
    theirs = CaptumOcclusion(model.module).attribute(
        model.preprocessing.normalise(images),
        sliding_window_shapes=(3, patch, patch),
        strides=(3, stride, stride),
        target=classes,
        perturbations_per_eval=8,
    )
    assert float((found - theirs[:, 0]).abs().max() / theirs.abs().max()) <= 1e-5


def test_the_result_names_its_baseline(one_pixel, tmp_path):
    image = torch.rand(1, 3, 8, 8)
    result = Occlusion(patch_px=2, baseline="blur")(one_pixel, image, 0)
    kept = load_result(result.save(tmp_path / "kept"))
    assert kept.provenance.parameters["baseline"] == "blur"
    texts = [text.get_text() for text in result.figure().texts]
    assert any("blur" in text for text in texts)


def test_an_image_smaller_than_the_patch_is_refused(one_pixel):
    with pytest.raises(ParameterError) as caught:
        Occlusion(patch_px=9)(one_pixel, torch.rand(1, 3, 8, 8), 0)
    assert "patch_px is 9, and the image has 8×8 px" in str(caught.value)
    assert "at most 8" in str(caught.value)


@pytest.mark.parametrize("field", ["patch_px", "stride_px"])
def test_nothing_of_no_size_slides(field):
    with pytest.raises(ParameterError, match=f"parameter '{field}' of occlusion is 0"):
        Occlusion(**{field: 0})


def test_a_stride_that_leaves_gaps_is_refused(one_pixel):
    with pytest.raises(ParameterError, match=r"stride_px is 4 and patch_px 2: .* gaps"):
        Occlusion(patch_px=2, stride_px=4)(one_pixel, torch.rand(1, 3, 8, 8), 0)


@pytest.mark.parametrize(("baseline", "value"), [("grey", 0.5), ("zero", 0.0), ("blur", 0.3)])
def test_an_image_that_is_all_baseline_has_no_map_of_rounding_errors(baseline, value):
    model = load_model("random:resnet18?img_size=32&num_classes=5")
    with pytest.raises(TechniqueError, match=f"another baseline than '{baseline}'"):
        Occlusion(baseline=baseline)(model, torch.full((1, 3, 32, 32), value), 0)
