"""Laplacian, network and phase spaces of an image, against what they promise."""

import math

import numpy as np
import pytest
import torch

from timmscope import (
    CppnParameterisation,
    LaplacianParameterisation,
    ParameterError,
    PhaseParameterisation,
    PixelParameterisation,
    falling_spectrum,
    mean_spectrum,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def photo(size=(12, 17), seed=1):
    return torch.rand(1, 3, *size, generator=generator(seed)) * 0.9 + 0.05


@pytest.mark.parametrize("size", [(12, 17), (8, 8), (5, 3)])
@pytest.mark.parametrize("decorrelate", [False, True])
def test_the_levels_of_a_pyramid_add_up_to_the_image(size, decorrelate):
    space = LaplacianParameterisation(size, decorrelate=decorrelate, levels=3)
    image = photo(size)
    variable = space.variable(image)
    assert variable.shape == (1, *space.shape())
    assert torch.allclose(space.image(variable), image, atol=1e-5)
    levels = space.levels(variable)
    assert [tuple(level.shape[2:]) for level in levels] == space.sizes


def test_a_constant_image_is_in_the_coarsest_level_alone():
    space = LaplacianParameterisation((8, 8), decorrelate=False, levels=3)
    fine, middle, coarse = space.levels(space.variable(torch.full((1, 3, 8, 8), 0.7)))
    assert coarse.std() < 1e-6
    assert coarse.mean().item() == pytest.approx(math.log(0.7 / 0.3), abs=1e-6)
    assert max(fine.abs().max(), middle.abs().max()) < 1e-6


def test_network_space_equals_a_slow_network_per_pixel():
    space = CppnParameterisation((3, 4), layers=2, width=5)
    (variable,) = torch.randn(1, *space.shape(), generator=generator(3)) / 3
    values, used, layers = variable.numpy().astype(np.float64), 0, []
    for out, inputs in ((5, 2), (5, 10), (3, 10)):
        weight = values[used : used + out * inputs].reshape(out, inputs)
        bias = values[used + out * inputs : used + out * inputs + out]
        used += out * (inputs + 1)
        layers.append((weight, bias))
    assert used == len(values)
    expected = np.zeros((3, 3, 4))
    for row, y in enumerate(np.linspace(-math.sqrt(3), math.sqrt(3), 3)):
        for column, x in enumerate(np.linspace(-math.sqrt(3), math.sqrt(3), 4)):
            state = np.array([x, y])
            for weight, bias in layers[:-1]:
                bent = np.arctan(weight @ state + bias)
                state = np.concatenate([bent / 0.67, bent**2 / 0.6])
            weight, bias = layers[-1]
            expected[:, row, column] = 1 / (1 + np.exp(-(weight @ state + bias)))
    found = space.image(variable[None])[0]
    assert np.allclose(found.numpy(), expected, atol=1e-5)


def test_a_network_starts_grey_and_takes_no_image():
    space = CppnParameterisation((6, 6))
    start = space.start([generator(), generator(1)], torch.zeros(1))
    assert torch.equal(space.image(start), torch.full((2, 3, 6, 6), 0.5))
    hidden = start[:, : 24 * 2]
    assert hidden.std().item() == pytest.approx(1 / math.sqrt(2), rel=0.25)
    with pytest.raises(ParameterError, match="cppn cannot start from an image"):
        space.variable(photo((6, 6)))


def test_phases_and_magnitudes_of_a_photograph_give_it_back():
    image = photo((12, 16))
    latent = PixelParameterisation((12, 16), decorrelate=True).variable(image)
    magnitude = torch.fft.rfft2(latent, norm="ortho").abs()
    space = PhaseParameterisation((12, 16), magnitude, decorrelate=True, standardise=False)
    assert torch.allclose(space.image(space.variable(image)), image, atol=1e-5)
    other = space.variable(image) + 0.3 * torch.randn(1, *space.shape(), generator=generator(2))
    moved = space.latent(other)
    # Rows of waves that are stored twice are averaged by the transform; the others keep theirs.
    kept = torch.fft.rfft2(moved, norm="ortho").abs()[..., 1:8]
    assert torch.allclose(kept, magnitude[..., 1:8], atol=1e-4)


def test_a_standardised_image_has_the_spectrum_up_to_a_factor():
    space = PhaseParameterisation((16, 16), falling_spectrum((16, 16)), decorrelate=False)
    latent = space.latent(space.start([generator(5)], torch.zeros(1)))
    assert latent.mean().abs() < 1e-6
    assert latent.square().mean().item() == pytest.approx(1, abs=1e-3)
    found = torch.fft.rfft2(latent, norm="ortho").abs()[..., 1:8]
    ratio = found / falling_spectrum((16, 16))[..., 1:8]
    assert ratio.std() / ratio.mean() < 1e-3


def test_mean_spectrum_is_the_mean_of_magnitudes():
    images = torch.rand(3, 3, 6, 8, generator=generator(6))
    expected = np.mean(
        [np.abs(np.fft.rfft2(image.numpy(), norm="ortho")) for image in images], axis=0
    )
    found = mean_spectrum(iter(images), (6, 8), decorrelate=False)
    assert np.allclose(found.numpy(), expected, atol=1e-5)
    with pytest.raises(ValueError, match="no image"):
        mean_spectrum([], (6, 8), decorrelate=False)


def test_a_spectrum_at_another_size_belongs_to_the_same_wavelengths():
    # Images whose magnitudes fall exactly as 1/f at 32 px must do so at 64 px, from 1/32 on.
    spectrum = falling_spectrum((32, 32), 1)
    phase = torch.rand(1, 1, *spectrum.shape[1:], generator=generator(7)) * 6
    spec = torch.polar(spectrum.expand_as(phase[0])[None].contiguous(), phase)
    image = torch.fft.irfft2(spec, s=(32, 32), norm="ortho")[0]
    found = mean_spectrum([image], (64, 64), decorrelate=False)
    assert found.shape == (1, 64, 33)
    # wave (0, k) of 64 px has as many pixels as wave (0, k / 2) of 32 px
    same = torch.fft.rfft2(image[None], norm="ortho").abs()[0, 0, 0, 1:16]
    assert torch.allclose(found[0, 0, 2:32:2], same, rtol=1e-3)
    assert found[0, 0, 4] > found[0, 0, 5] > found[0, 0, 6]
