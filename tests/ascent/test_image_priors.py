"""Priors of images have hand-computed values and gradients."""

from __future__ import annotations

import pytest
import torch

from timmscope import alpha_norm, total_variation


def images(*, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, 5, 6, generator=generator, dtype=torch.float64)


def test_with_exponent_two_the_variation_is_the_dirichlet_sum():
    x = images()
    right, down = x.diff(dim=3).square(), x.diff(dim=2).square()
    expected = (right.sum((1, 2, 3)) + down.sum((1, 2, 3))) / 30
    assert torch.allclose(total_variation(x), expected, rtol=1e-12)


def test_other_exponents_apply_to_the_squared_slope_of_each_pixel():
    x = torch.tensor([[[[0.0, 3.0], [4.0, 9.0]]]], dtype=torch.float64)
    # squared slopes: upper left 3² + 4², upper right 6², lower left 5², lower right 0
    assert total_variation(x, 1).item() == pytest.approx((5 + 6 + 5) / 4, abs=1e-3)
    assert total_variation(x, 3).item() == pytest.approx((5**3 + 6**3 + 5**3) / 4)


@pytest.mark.parametrize("beta", [1, 1.5, 2, 3])
def test_the_gradient_of_the_variation_equals_central_differences(beta):
    x, direction, step = images(), images(seed=1) - 0.5, 1e-6
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total_variation(leaf, beta).sum(), leaf)
    ends = [total_variation(x + sign * step * direction, beta).sum() for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-6)


@pytest.mark.parametrize("beta", [1, 1.5, 2, 3])
def test_an_image_of_one_colour_costs_nothing_and_has_a_gradient(beta):
    leaf = torch.full((1, 3, 4, 4), 0.7, requires_grad=True)
    variation = total_variation(leaf, beta)
    assert variation.item() == 0
    assert torch.equal(torch.autograd.grad(variation.sum(), leaf)[0], torch.zeros_like(leaf))


def test_the_alpha_norm_is_that_of_each_pixels_colour():
    x = torch.tensor([2.0, 2.0, 1.0]).view(1, 3, 1, 1).repeat(1, 1, 2, 2)
    x[..., 1, 1] = 0
    assert alpha_norm(x, 6).item() == pytest.approx(3 * 3**6 / 4)
    assert alpha_norm(x, 2).item() == pytest.approx(3 * 9 / 4)
    leaf = torch.zeros(1, 3, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(alpha_norm(leaf).sum(), leaf)
    assert torch.equal(gradient, torch.zeros_like(leaf))
