"""Norms, projections and noise of a ball against values computed by hand and by slow versions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from timmscope import Ball, NearestFound, Norm, project_change

NORMS: list[Norm] = ["linf", "l2", "l1", "l0"]


def pixels(*values: float) -> Tensor:
    """One image of one row with one channel."""
    return torch.tensor(values).view(1, 1, 1, -1)


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(count)]


@pytest.mark.parametrize(
    ("norm", "epsilon", "change", "nearest"),
    [
        ("linf", 0.25, (0.5, -0.1, -0.4), (0.25, -0.1, -0.25)),
        ("l2", 2.5, (3.0, -4.0, 0.0), (1.5, -2.0, 0.0)),
        ("l2", 5.0, (3.0, -4.0, 0.0), (3.0, -4.0, 0.0)),
        # Duchi et al.: 0.5 + 0.3 - 2θ = 0.5, so θ = 0.15, which is more than the last value.
        ("l1", 0.5, (0.5, -0.3, 0.1), (0.35, -0.15, 0.0)),
        # All stay: 0.9 - 3θ = 0.75, so θ = 0.05.
        ("l1", 0.75, (0.5, -0.3, 0.1), (0.45, -0.25, 0.05)),
        # Only the first stays: 0.5 - θ = 0.1, so θ = 0.4.
        ("l1", 0.1, (0.5, -0.3, 0.1), (0.1, 0.0, 0.0)),
        ("l1", 0.9, (0.5, -0.3, 0.1), (0.5, -0.3, 0.1)),
        ("l1", 1.0, (1.0, 1.0, 1.0, 1.0), (0.25, 0.25, 0.25, 0.25)),
        ("l1", 0.0, (0.5, -0.3, 0.1), (0.0, 0.0, 0.0)),
        ("l0", 2, (0.5, -0.3, 0.1), (0.5, -0.3, 0.0)),
        ("l0", 1.9, (0.1, -0.3, 0.2), (0.0, -0.3, 0.0)),
        ("l0", 0, (0.5, -0.3, 0.1), (0.0, 0.0, 0.0)),
    ],
)
def test_projections_are_those_computed_by_hand(norm, epsilon, change, nearest):
    found = Ball(norm=norm, epsilon=epsilon).project(pixels(*change))
    torch.testing.assert_close(found, pixels(*nearest))


def test_a_pixel_of_an_l0_ball_has_all_its_channels():
    change = torch.tensor([[0.3, 0.4], [0.3, 0.0], [0.3, 0.0]]).view(1, 3, 1, 2)
    kept = Ball(norm="l0", epsilon=1).project(change)  # the lengths are 0.52 and 0.4
    assert torch.equal(kept[..., 0], change[..., 0])
    assert not kept[..., 1].any()
    assert Ball(norm="l0", epsilon=1).size(change).tolist() == [2]


def slow_l1(change: list[float], epsilon: float) -> list[float]:
    """The projection by halving the interval that holds the threshold."""
    low, high = 0.0, max(map(abs, change))
    for _ in range(200):
        middle = (low + high) / 2
        inside = sum(max(abs(value) - middle, 0) for value in change) <= epsilon
        low, high = (low, middle) if inside else (middle, high)
    threshold = 0.0 if sum(map(abs, change)) <= epsilon else high
    return [max(abs(value) - threshold, 0) * (1 if value > 0 else -1) for value in change]


@pytest.mark.parametrize(("seed", "epsilon"), list(itertools.product(range(4), (0.01, 1.0, 20.0))))
def test_the_l1_projection_agrees_with_a_slow_search(seed, epsilon):
    change = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed)).double()
    found = Ball(norm="l1", epsilon=epsilon).project(change)
    for row in range(3):
        expected = slow_l1(change[row].flatten().tolist(), epsilon)
        assert found[row].flatten().tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_no_change_in_the_ball_is_nearer_than_the_projection(norm):
    epsilon = {"linf": 0.3, "l2": 0.9, "l1": 1.5, "l0": 4.0}[norm]
    ball = Ball(norm=norm, epsilon=epsilon)
    change = torch.randn(1, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    nearest = ball.project(change)
    assert bool(ball.holds(nearest).all())
    rivals = ball.sample(change.expand(2000, -1, -1, -1), generators(2000))
    around = ball.project(nearest + 0.05 * torch.randn(2000, 3, 3, 3))
    best = (change - nearest).norm()
    for each in (rivals, around):
        assert bool(ball.holds(each).all())
        assert float((change - each).flatten(1).norm(dim=1).min()) >= float(best) - 1e-5


def test_sizes_are_those_computed_by_hand():
    change = torch.zeros(1, 3, 2, 2)
    change[0, 0, 0, 0], change[0, 1, 0, 0], change[0, 2, 1, 1] = 0.3, -0.4, 0.1
    sizes = {norm: float(Ball(norm=norm, epsilon=1).size(change)) for norm in NORMS}
    expected = {"linf": 0.4, "l2": 0.26**0.5, "l1": 0.8, "l0": 2.0}
    assert sizes == pytest.approx(expected)


@pytest.mark.parametrize("norm", NORMS)
def test_no_direction_of_unit_norm_rises_faster(norm):
    gradient = torch.randn(1, 3, 3, 3, generator=torch.Generator().manual_seed(2))
    ball = Ball(norm=norm, epsilon=1.0)
    steepest = ball.steepest(gradient)
    assert float(ball.size(steepest)) == pytest.approx(1.0)
    rise = float((steepest * gradient).sum())
    others = ball.noise(gradient.expand(3000, -1, -1, -1), generators(3000))
    assert rise >= float((others * gradient).flatten(1).sum(1).max()) - 1e-6
    dual = {
        "linf": gradient.abs().sum(),
        "l2": gradient.norm(),
        "l1": gradient.abs().max(),
        "l0": gradient.abs().sum(1).max(),
    }
    assert rise == pytest.approx(float(dual[norm]), rel=1e-6)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_samples_are_uniform_in_the_ball(norm):
    images = torch.zeros(20000, 3, 1, 1)  # a ball of three dimensions
    inside = Ball(norm=norm, epsilon=2.0).sample(images, generators(len(images)))
    radius = Ball(norm=norm, epsilon=2.0).size(inside)
    assert float(radius.max()) <= 2.0 + 1e-6
    for share in (0.1, 0.5, 0.9):  # the volume within r is (r/ε)^3
        within = float((radius <= 2 * share ** (1 / 3)).float().mean())
        assert within == pytest.approx(share, abs=0.015)
    assert float(inside.mean(0).abs().max()) < 0.04


@pytest.mark.parametrize("norm", NORMS)
def test_noise_has_the_size_of_the_ball_and_is_each_images_own(norm):
    ball = Ball(norm=norm, epsilon=3.0)
    images = torch.zeros(5, 3, 4, 4)
    noise = ball.noise(images, generators(5))
    assert ball.size(noise).tolist() == pytest.approx([3.0] * 5, rel=1e-5)
    assert torch.equal(noise[3:4], ball.noise(images[3:4], generators(5)[3:4]))
    assert len({float(each.sum()) for each in noise}) > 1


@pytest.mark.parametrize("norm", NORMS)
def test_only_rounding_is_tolerated(norm):
    epsilon = {"linf": 8 / 255, "l2": 3.0, "l1": 60.0, "l0": 150.0}[norm]
    ball = Ball.of(norm, None, torch.zeros(1, 3, 224, 224))
    assert ball.epsilon == pytest.approx(epsilon)
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    change = ball.noise(images, generators(1))
    kept = (0.25 + images / 2) + change  # images and changes are stored as float32 values
    assert bool(ball.holds(kept - (0.25 + images / 2)).all())
    assert not bool(ball.holds(change * 1.001 if norm != "l0" else change.roll(1, 3) + change))


def test_default_radii_grow_with_the_side_except_linf():
    small = torch.zeros(1, 3, 32, 32)
    found = {norm: Ball.of(norm, None, small).epsilon for norm in NORMS}
    assert found == pytest.approx({"linf": 8 / 255, "l2": 3 / 7, "l1": 60 / 7, "l0": 150 / 7})


@pytest.mark.parametrize("norm", NORMS)
def test_balls_of_different_sizes_project_like_one_ball_each(norm):
    change = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(4))
    change[3] = 0.1  # ties
    radii = torch.tensor([0.0, 0.3, 2.5, 7.0])
    together = project_change(change, norm, radii)
    for row, radius in enumerate(radii.tolist()):
        alone = Ball(norm=norm, epsilon=radius).project(change[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone)


def test_the_nearest_image_that_reaches_the_goal_is_kept():
    images = torch.zeros(3, 1, 1, 2)
    nearest = NearestFound(images, "l1")
    rows = torch.tensor([2, 0])
    far = torch.tensor([[0.5, 0.25], [0.5, 0.5]]).view(2, 1, 1, 2)
    assert nearest.offer(rows, far, torch.tensor([True, False])).tolist() == [True, False]
    nearer = torch.tensor([[0.5, 0.0], [0.25, 0.0]]).view(2, 1, 1, 2)
    assert nearest.offer(rows, nearer, torch.tensor([True, True])).tolist() == [True, True]
    assert nearest.offer(rows, far, torch.tensor([True, True])).tolist() == [False, False]
    assert nearest.sizes.tolist() == [0.25, math.inf, 0.5]
    assert nearest.found.tolist() == [True, False, True]
    assert nearest.images.flatten(1).tolist() == [[0.25, 0.0], [0.0, 0.0], [0.5, 0.0]]
    assert torch.equal(images, torch.zeros(3, 1, 1, 2))


def test_a_step_in_l1_changes_a_fifth_of_the_values_and_stays_in_the_box():
    ball = Ball(norm="l1", epsilon=0.6)
    gradient = pixels(5.0, -4.0, 3.0, 0.5, 0.0, 0.1, 0.2, -0.3, 0.1, 0.0)
    assert ball.direction(gradient).flatten().tolist() == [0.5, -0.5, *[0.0] * 8]
    centre = pixels(0.9, 0.5, *[0.5] * 8)
    # Of 0.5 more and 0.5 less, the first has room for 0.1, so the second takes the rest of 0.6.
    moved = ball.step(centre, centre, gradient, 1.0)
    torch.testing.assert_close(moved, pixels(1.0, 0.0, *[0.5] * 8))
    few = ball.direction(gradient, torch.tensor([0.1]))
    assert few.flatten().tolist() == [1.0, *[0.0] * 9]
