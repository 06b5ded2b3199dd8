"""The two spaces an image is optimised in, against slow or hand-made versions."""

import cmath
import itertools

import pytest
import torch

from timmscope.techniques.ascent.parameterisation import (
    FourierParameterisation,
    PixelParameterisation,
    colour_matrix,
)


def naive_latent(variable, size, decay_power):
    """Sum of plane waves, one coefficient of the full spectrum at a time."""
    height, width = size
    half = width // 2 + 1
    latent = torch.zeros(3, height, width, dtype=torch.float64)
    for colour, v, u in itertools.product(range(3), range(height), range(width)):
        # The spectrum of a real image: what is not stored is the conjugate of its mirror image.
        row, column = (v, u) if u < half else (-v % height, width - u)
        value = complex(*variable[colour, row, column].tolist())
        if u >= half:
            value = value.conjugate()
        elif u == 0 or 2 * u == width:  # both mirror images stored: the real part of the pair acts
            mirror = complex(*variable[colour, -v % height, column].tolist())
            value = (value + mirror.conjugate()) / 2
        fy = (v if v <= (height - 1) // 2 else v - height) / height
        fx = (u if u <= (width - 1) // 2 else u - width) / width
        value /= max((fy * fy + fx * fx) ** 0.5, 1 / max(size)) ** decay_power
        for y, x in itertools.product(range(height), range(width)):
            wave = cmath.exp(2j * cmath.pi * (v * y / height + u * x / width))
            latent[colour, y, x] += (value * wave).real / (height * width) ** 0.5 / 4
    return latent * (224 / max(size)) ** (decay_power - 1)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (6, 5), (3, 4), (1, 3)])
@pytest.mark.parametrize("decay_power", [0.0, 1.0, 1.5])
def test_fourier_image_is_the_sum_of_scaled_plane_waves(size, decay_power):
    space = FourierParameterisation(size, decorrelate=False, decay_power=decay_power)
    variable = torch.randn(space.shape(), generator=torch.Generator().manual_seed(1)).double()
    expected = naive_latent(variable, size, decay_power)
    assert torch.allclose(space.latent(variable[None])[0], expected, atol=1e-6)
    assert torch.allclose(space.image(variable[None])[0], expected.sigmoid(), atol=1e-6)


def test_colour_matrix_is_the_hand_computed_one():
    # Column norms of Lucid's root: |(.26, .27, .27)| = .461952, the largest; the others are
    # |(.09, 0, -.09)| = .127 and |(.02, -.05, .03)| = .0616.
    expected = torch.tensor(
        [
            [0.562829, 0.194825, 0.043295],
            [0.584476, 0.000000, -0.108236],
            [0.584476, -0.194825, 0.064942],
        ]
    )
    assert torch.allclose(colour_matrix(torch.zeros(1)), expected, atol=1e-6)


def test_decorrelated_colours_are_mixed_pixel_by_pixel():
    space = PixelParameterisation((1, 1), decorrelate=True)
    variable = torch.tensor([1.0, 2.0, -1.0]).view(1, 3, 1, 1)
    # R: .562829 + 2 * .194825 - .043295 and so on, by hand from the matrix above
    expected = torch.tensor([0.909184, 0.692712, 0.129884]).sigmoid()
    assert torch.allclose(space.image(variable).flatten(), expected, atol=1e-5)


@pytest.mark.parametrize("decorrelate", [False, True])
@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_an_image_survives_the_way_into_the_space_and_back(size, decorrelate):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    for space in (
        PixelParameterisation(size, decorrelate=decorrelate),
        FourierParameterisation(size, decorrelate=decorrelate, decay_power=1.5),
    ):
        assert torch.allclose(space.image(space.variable(images)), images, atol=1e-5)


def test_black_and_white_start_one_percent_off_so_that_they_can_move():
    space = PixelParameterisation((2, 2), decorrelate=False)
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    assert torch.allclose(space.image(space.variable(images)), images.clamp(0.01, 0.99))
