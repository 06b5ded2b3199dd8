"""Random views, against the steps they are composed of."""

import math

import pytest
import torch

from timmscope.techniques.ascent.views import RandomViews, view

NOTHING = {"pad_px": 0, "jitter_px": 0, "scale": 0, "rotate_deg": 0, "fine_jitter_px": 0}


def images(count=2, size=(9, 12)):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(3))


def draws(*values):
    return torch.tensor(values).view(1, 6)


def views(**changed):
    return RandomViews(**{**NOTHING, **changed})


def test_views_with_everything_off_are_the_image():
    batch = images()
    settings = views()
    matrices = settings.matrices(torch.ones(2, 6), (9, 12))
    assert settings.identity
    assert torch.allclose(view(batch, matrices), batch, atol=1e-6)


def test_jitter_shifts_by_whole_pixels_and_fills_with_grey():
    batch = images(1, (8, 8))
    # At 8 px a reference pixel is 8/224 px: 112 of them are 4 px, so the draw (1, -.5) is 2 and
    # -1 px, after a padding that keeps what is left at 8 px.
    settings = views(pad_px=56, jitter_px=112)
    seen = view(batch, settings.matrices(draws(1.0, -0.5, 0, 0, 0, 0), (8, 8)))[0]
    assert torch.allclose(seen[:, :6, 1:], batch[0, :, 2:, :7], atol=1e-5)
    assert torch.allclose(seen[:, 6:], torch.full((3, 2, 8), 0.5), atol=1e-5)
    assert torch.allclose(seen[:, :, 0], torch.full((3, 8), 0.5), atol=1e-5)


def test_padding_shows_the_image_within_a_grey_border():
    settings = views(pad_px=56)  # 2 px at 8 px: a canvas of 12 px, resized to 8
    white = torch.ones(1, 3, 8, 8)
    seen = view(white, settings.matrices(torch.zeros(1, 6), (8, 8)))[0, 0]
    assert torch.allclose(seen[0], torch.full((8,), 0.5))
    assert torch.allclose(seen[2:6, 2:6], torch.ones(4, 4))


def test_quarter_turn_is_torch_rot90():
    batch = images(1, (8, 8))
    settings = views(rotate_deg=90)
    seen = view(batch, settings.matrices(draws(0, 0, 0, 1.0, 0, 0), (8, 8)))
    assert torch.allclose(seen, torch.rot90(batch, 1, (2, 3)), atol=1e-4)


def test_quarter_turn_of_a_wide_image_keeps_its_pixels_square():
    batch = images(1, (6, 10))
    settings = views(rotate_deg=90)
    seen = view(batch, settings.matrices(draws(0, 0, 0, 1.0, 0, 0), (6, 10)))
    turned = torch.rot90(batch, 1, (2, 3))  # 10 x 6: its middle 6 rows are columns 2 to 8 here
    assert torch.allclose(seen[..., 2:8], turned[:, :, 2:8], atol=1e-4)
    assert torch.allclose(seen[..., :2], torch.full((1, 3, 6, 2), 0.5), atol=1e-4)


def test_scaling_zooms_about_the_centre():
    batch = images(1, (8, 8))
    settings = views(scale=0.5)
    # Factor 0.5: the image takes the middle half of the view, each pixel the mean of 2 x 2.
    small = view(batch, settings.matrices(draws(0, 0, -1.0, 0, 0, 0), (8, 8)))
    pooled = torch.nn.functional.avg_pool2d(batch, 2)
    assert torch.allclose(small[..., 2:6, 2:6], pooled, atol=1e-5)
    assert torch.allclose(small[..., :2, :], torch.full((1, 3, 2, 8), 0.5), atol=1e-5)


def test_map_is_the_composition_of_its_steps():
    settings = RandomViews()
    draw = torch.tensor([0.3, -0.8, 0.5, -0.4, 0.9, 0.2])
    matrix = settings.matrices(draw[None], (224, 224))[0].double()
    # One place of the view followed by hand, backwards through resize, jitter, rotation, scale
    # and jitter; pixels from the centre, x first.
    place = torch.tensor([0.25, -0.5])
    factor = 1 + 0.1 * 0.5
    window = 224 + 24 - 8 - 4
    x, y = (place * window / 2).tolist()
    x, y = x + 0.2 * 2, y + 0.9 * 2
    angle = math.radians(10 * -0.4)
    x, y = (
        (math.cos(angle) * x - math.sin(angle) * y) / factor,
        (math.sin(angle) * x + math.cos(angle) * y) / factor,
    )
    x, y = x - 0.8 * 4, y + 0.3 * 4
    got = matrix @ torch.tensor([0.25, -0.5, 1.0]).double() * 112
    assert got.tolist() == pytest.approx([x, y], abs=1e-4)


def test_views_of_an_image_depend_on_its_own_generator_alone():
    settings = RandomViews()

    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    both = settings.draw(5, (32, 32), generators(1, 2))
    alone = settings.draw(5, (32, 32), generators(2))
    assert torch.equal(both[:, 1], alone[:, 0])
    assert not torch.equal(both[:, 0], both[:, 1])
