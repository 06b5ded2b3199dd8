"""Pixels in files and heat-map colours equal hand-computed values."""

import numpy as np
import pytest
import torch
from PIL import Image

from timmscope.drawing import HeatScale, colourise, overlay, png_bytes, to_array, write_png
from timmscope.drawing.diverging import diverging, oklab
from timmscope_registry import ImageError


def test_png_contains_the_nearest_of_256_levels(tmp_path):
    image = torch.tensor([0.0, 0.5, 1.0])[:, None, None].expand(3, 2, 4)
    path = write_png(image, tmp_path / "x.png")
    array = np.asarray(Image.open(path))
    assert array.shape == (2, 4, 3)
    assert array[0, 0].tolist() == [0, 128, 255]


def test_png_round_trip_keeps_8_bit_values_exactly(tmp_path):
    values = torch.arange(3 * 256).reshape(3, 16, 16) % 256
    path = write_png(values / 255, tmp_path / "x.png")
    assert (np.asarray(Image.open(path)).transpose(2, 0, 1) == values.numpy()).all()
    assert path.read_bytes()[:8] == png_bytes(values / 255)[:8]


def test_values_are_clipped_and_grey_becomes_rgb():
    assert to_array(torch.tensor([[-1.0, 2.0]])).tolist() == [[[0, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("shape", [(17, 2, 2), (1, 3, 2, 2), (2,)])
def test_a_picture_of_another_shape_is_refused(shape):
    with pytest.raises(ImageError, match="shape"):
        to_array(torch.zeros(shape))


def test_a_picture_of_four_channels_is_drawn_as_their_mean():
    image = torch.tensor([0.0, 0.2, 0.4, 1.0])[:, None, None].expand(4, 2, 3)
    assert to_array(image).tolist() == [[[102] * 3] * 3] * 2


def test_a_picture_with_nan_is_refused():
    with pytest.raises(ImageError, match="NaN"):
        to_array(torch.full((3, 2, 2), torch.nan))


def test_unsigned_maps_span_from_zero_to_their_quantile():
    heat = torch.ones(100, 100)
    heat[0, 0] = 5.0
    scale = HeatScale.of(heat)
    assert (scale.low, scale.high, scale.signed, scale.clipped) == (0.0, 1.0, False, True)


def test_signed_maps_are_white_at_zero_and_symmetric():
    heat = torch.tensor([[-1.0, 0.0, 2.0]])
    scale = HeatScale.of(heat)
    assert scale.signed
    assert scale.low == -scale.high
    middle = colourise(heat)[:, 0, 1]
    assert torch.allclose(middle, torch.full((3,), 0.97), atol=1e-6)


def test_equal_steps_of_the_signed_colours_look_equally_large():
    places = oklab(np.asarray(diverging().colors))
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    for side in (steps[:128], steps[128:]):
        assert np.allclose(side, side.mean(), rtol=1e-3)
    assert abs(steps[0] / steps[-1] - 1) < 0.15


@pytest.mark.parametrize("side", [5, 10, 35])
def test_the_range_of_colours_does_not_depend_on_the_share_of_zeros(side):
    part = torch.rand(35, 35, generator=torch.Generator().manual_seed(0)) + 0.1
    heat = torch.zeros(224, 224)
    heat[:side, :35] = part[:side]
    scale = HeatScale.of(heat)
    assert scale.high == pytest.approx(float(np.quantile(part[:side], 0.995)))


def test_an_isolated_peak_among_zeros_keeps_its_colour():
    heat = torch.zeros(100, 100)
    heat[3, 3] = 1.0
    assert HeatScale.of(heat).high == 1.0


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_constant_maps_give_finite_colours(value):
    heat = torch.full((5, 7), value)
    shown = overlay(torch.full((3, 5, 7), 0.5), heat)
    assert torch.isfinite(shown).all()
    assert 0 <= shown.min() <= shown.max() <= 1


def test_maps_with_nan_still_give_an_image():
    heat = torch.tensor([[torch.nan, 1.0], [torch.inf, 0.0]])
    assert torch.isfinite(colourise(heat)).all()


def test_overlay_without_heat_is_the_pale_image():
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    shown = overlay(image, torch.zeros(8, 8))
    luma = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    assert torch.allclose(shown, 0.75 * luma + 0.25 * image, atol=1e-6)


def test_overlay_resizes_a_coarse_map_to_the_image():
    image = torch.zeros(3, 8, 8)
    heat = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    shown = overlay(image, heat)
    assert shown.shape == (3, 8, 8)
    assert shown[:, 0, 0].sum() > shown[:, 7, 7].sum()
