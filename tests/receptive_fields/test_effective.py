"""Effective receptive fields are where the gradient's energy is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.receptive_fields.conftest import hooked, plain
from torch import nn

from timmscope import ParameterError, UnsupportedModel, receptive_field
from timmscope.receptive_fields.energy import _box


def one_convolution(rows, columns):
    """A network whose gradient at a cell is the outer product of two vectors."""
    kernel = torch.outer(torch.tensor(rows), torch.tensor(columns))
    convolution = nn.Conv2d(3, 2, kernel.shape, padding=[n // 2 for n in kernel.shape], bias=False)
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.weight[0, 1] = kernel
        convolution.weight[1, 2] = kernel.T if kernel.shape[0] == kernel.shape[1] else kernel
    return plain(nn.Sequential(convolution), (20, 30))


def test_the_box_is_the_smallest_with_95_percent_of_the_energy():
    # Energies down 1 : 100 : 1 keep 98 % in one row; across 0.01 : 1 : 1 : 1 : 0.01.
    model = one_convolution([1.0, 10.0, 1.0], [0.1, 1.0, 1.0, 1.0, 0.1])
    field = receptive_field(model, "0", "effective", unit=0)
    assert field.size == (1, 3)
    assert field.kind == "effective"
    assert field.box((10, 15)) == (14, 10, 17, 11)
    assert field.box((0, 0)) == (0, 0, 2, 1)
    assert field.box((0, 0), clip=False) == (-1, 0, 2, 1)
    assert field.stride == (1, 1)


def test_units_have_different_fields_and_all_units_count_by_default():
    model = one_convolution([0.0, 1.0, 0.0], [1.0, 1.0, 1.0])
    assert receptive_field(model, "0", "effective", unit=0).size == (1, 3)
    assert receptive_field(model, "0", "effective", unit=1).size == (3, 1)
    assert receptive_field(model, "0", "effective").size == (3, 3)


def test_a_box_cuts_the_same_energy_off_each_side():
    energy = np.zeros((9, 9))
    energy[4, :] = [1, 2, 3, 10, 168, 10, 3, 2, 1]  # of 200: 1, 1.5 % and 3 % from either end
    assert _box(energy) == (4, 5, 2, 7)
    energy[4, :] = [0, 0, 0, 0, 96, 0, 0, 0, 4]
    assert _box(energy) == (4, 5, 4, 5)


def test_the_share_inside_the_box_equals_a_separate_computation():
    model = hooked("resnet18", (96, 96))
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(6, 3, 96, 96, generator=generator)
    cells = [(3, 2), (6, 6), (5, 8), (6, 6), (7, 4), (0, 11)]
    field = receptive_field(model, "layer2", "effective", images, unit=7, positions=cells)
    exact = receptive_field(model, "layer2", "exact")
    assert field.size[0] < exact.size[0]
    assert field.size[1] < exact.size[1]
    inside = []
    for image, cell in zip(images, cells, strict=True):
        leaf = image[None].clone().requires_grad_()
        with model.record("layer2") as recording:
            model(leaf)
        recording["layer2"][0, 7][cell].backward()
        energy = leaf.grad[0].double().square().sum(0)
        left, upper, right, lower = field.box(cell)
        inside.append(float(energy[upper:lower, left:right].sum() / energy.sum()))
    assert np.mean(inside) >= 0.95 - 1e-9
    assert np.mean(inside) < 0.97


def test_a_sum_over_units_by_random_signs_is_the_sum_of_their_energies():
    model = hooked("resnet18", (64, 64))
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    total = np.zeros((64, 64))
    for image in images:
        leaf = image[None].clone().requires_grad_()
        with model.record("layer1") as recording:
            model(leaf)
        energy = torch.zeros(64, 64, dtype=torch.double)
        for value in recording["layer1"][0, :, 8, 8]:
            (gradient,) = torch.autograd.grad(value, leaf, retain_graph=True)
            energy += gradient[0].double().square().sum(0)
        total += (energy / energy.sum()).numpy()
    upper, lower, left, right = _box(total)
    field = receptive_field(model, "layer1", "effective", images)
    found = field.box((8, 8))
    assert np.abs(np.subtract(found, (left, upper, right, lower))).max() <= 2


def test_the_default_noise_is_fixed_and_random_states_do_not_change():
    model = hooked("mobilenetv2_050", (64, 96))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = receptive_field(model, "blocks.2", "effective")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    again = receptive_field(model, "blocks.2", "effective")
    np.testing.assert_array_equal(first.boxes, again.boxes)


def test_images_of_several_batches_are_all_measured():
    model = hooked("mobilenetv2_050", (64, 64))
    images = torch.rand(11, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    field = receptive_field(model, "blocks.1", "effective", images, unit=3)
    other = receptive_field(model, "blocks.1", "effective", images.flip(0), unit=3)
    np.testing.assert_array_equal(field.boxes, other.boxes)


def test_silent_units_and_wrong_arguments_are_refused_in_one_line():
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())
    with torch.no_grad():
        module[0].bias[:] = -100
    model = plain(module, (12, 12))
    with pytest.raises(UnsupportedModel, match=r"no gradient of 1\[0\] reaches.*silent"):
        receptive_field(model, "1", "effective", unit=0)
    with pytest.raises(ParameterError, match="units 0 to 1, there is no unit 2"):
        receptive_field(model, "1", "effective", unit=2)
    with pytest.raises(ParameterError, match="1 positions for 8 images"):
        receptive_field(model, "0", "effective", positions=[(0, 0)])
    with pytest.raises(ParameterError, match=r"10x10 cells, there is no cell \(10, 0\)"):
        receptive_field(model, "0", "effective", positions=[(10, 0)] * 8)
    with pytest.raises(ParameterError, match="kind 'best'; choose exact, spatial or effective"):
        receptive_field(model, "0", "best")
    with pytest.raises(ParameterError, match="change nothing about spatial"):
        receptive_field(model, "0", unit=1)
