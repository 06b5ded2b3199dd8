"""Projections that keep pixels in [0, 1], against hand-computed values and slow second versions."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from timmscope import ParameterError, project_l1_in_box, step_to_plane


def pixels(*values: float) -> Tensor:
    """One image of one row with one channel, in float64."""
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


@pytest.mark.parametrize(
    ("image", "change", "radius", "nearest"),
    [
        ((0.5, 0.5), (0.3, -0.1), 1.0, (0.3, -0.1)),  # inside both
        ((0.5, 0.5), (0.9, -0.1), 1.0, (0.5, -0.1)),  # outside of the box alone
        ((0.5, 0.5), (0.4, -0.2), 0.4, (0.3, -0.1)),  # 0.6 - 2θ = 0.4
        # The first may move by 0.1 only, so the second keeps 0.4 of its 0.5: θ = 0.1, not 0.5.
        ((0.9, 0.5), (0.9, -0.5), 0.5, (0.1, -0.4)),
        ((0.0, 0.5), (-0.9, 0.5), 0.2, (0.0, 0.2)),  # no room at all
        ((0.5, 0.5), (0.4, -0.2), 0.0, (0.0, 0.0)),
        ((0.9, 0.1), (0.9, -0.9), 9.0, (0.1, -0.1)),
    ],
)
def test_the_projection_onto_ball_and_box_is_that_computed_by_hand(image, change, radius, nearest):
    found = project_l1_in_box(pixels(*image), pixels(*change), radius)
    torch.testing.assert_close(found, pixels(*nearest))


def slow_l1(image: list[float], change: list[float], radius: float) -> list[float]:
    """The projection by halving the interval that holds the threshold."""
    low, high = 0.0, max(abs(value) for value in change)

    def kept(threshold: float) -> list[float]:
        room = [1 - x if d > 0 else x for x, d in zip(image, change, strict=True)]
        sizes = [min(max(abs(d) - threshold, 0.0), u) for d, u in zip(change, room, strict=True)]
        return [size if d > 0 else -size for size, d in zip(sizes, change, strict=True)]

    if sum(map(abs, kept(0.0))) <= radius:
        return kept(0.0)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(map(abs, kept(middle))) > radius else (low, middle)
    return kept(high)


def test_the_projection_onto_ball_and_box_equals_a_slow_one_and_is_the_nearest():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, 2, 3, generator=generator, dtype=torch.float64)
    images[:5] = images[:5].round()
    changes = 2 * torch.randn(images.shape, generator=generator, dtype=torch.float64)
    radii = torch.linspace(0, 8, 40, dtype=torch.float64)
    found = project_l1_in_box(images, changes, radii)
    for row in range(40):
        image, change = images[row].flatten().tolist(), changes[row].flatten().tolist()
        slow = torch.tensor(slow_l1(image, change, float(radii[row])), dtype=torch.float64)
        torch.testing.assert_close(found[row].flatten(), slow, atol=1e-9, rtol=0)
    rivals = images[None] + torch.randn(64, *images.shape, generator=generator).double()
    inside = project_l1_in_box(  # any point of ball and box
        images.repeat(64, 1, 1, 1), (rivals - images).flatten(0, 1), radii.repeat(64)
    )
    distance = (found - changes).flatten(1).norm(dim=1)
    others = (inside.view(64, *images.shape) - changes).flatten(2).norm(dim=2)
    assert bool((distance <= others + 1e-9).all())


def test_a_big_image_in_float32_stays_in_ball_and_box():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 224, 224, generator=generator)
    changes = torch.randn(images.shape, generator=generator)
    found = project_l1_in_box(images, changes, 60.0)
    assert found.dtype == torch.float32
    assert found.double().abs().flatten(1).sum(1).tolist() == pytest.approx([60, 60], rel=1e-6)
    moved = images + found
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1


def least_change(image: Tensor, normal: Tensor, gap: float, norm: str) -> float:
    """Norm of the smallest step to the plane, by a linear program (linf, l1) or halving (l2)."""
    x, w = image.flatten().tolist(), normal.flatten().tolist()
    count = len(x)
    if norm == "l2":  # the magnitudes are min(room, t·|w|), with the smallest t that reaches it
        signs = [1 if gap * value > 0 else -1 for value in w]
        room = [1 - at if sign > 0 else at for at, sign in zip(x, signs, strict=True)]
        low, high = 0.0, 1e6
        for _ in range(200):
            t = (low + high) / 2
            sizes = [min(u, t * abs(value)) for u, value in zip(room, w, strict=True)]
            gain = sum(size * abs(value) for size, value in zip(sizes, w, strict=True))
            low, high = (t, high) if gain < abs(gap) else (low, t)
        return float(sum(size**2 for size in sizes) ** 0.5)
    # Variables: the parts of the change up and down, and in linf the largest of them.
    plane = [[*w, *(-value for value in w)]]
    limits = [(0, 1 - at) for at in x] + [(0, at) for at in x]
    if norm == "l1":
        solved = linprog([1.0] * 2 * count, A_eq=plane, b_eq=[gap], bounds=limits)
    else:
        rows = [[float(i == j) for j in range(2 * count)] + [-1.0] for i in range(2 * count)]
        solved = linprog(
            [0.0] * 2 * count + [1.0], A_ub=rows, b_ub=[0.0] * 2 * count,
            A_eq=[[*plane[0], 0.0]], b_eq=[gap], bounds=[*limits, (0, None)],
        )  # fmt: skip
    assert solved.success
    return float(solved.fun)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_step_to_a_plane_is_the_smallest_within_the_box(norm):
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(12, 1, 2, 4, generator=generator, dtype=torch.float64)
    images[:3] = images[:3].round()
    normals = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    normals[4, 0, 0, :2] = 0
    up = torch.where(normals > 0, 1 - images, images).mul(normals.abs()).flatten(1).sum(1)
    down = torch.where(normals < 0, 1 - images, images).mul(normals.abs()).flatten(1).sum(1)
    shares = torch.rand(12, generator=generator, dtype=torch.float64)
    gaps = torch.where(torch.arange(12) % 2 == 0, shares * up, -shares * down)
    steps = step_to_plane(images, normals, gaps, norm)
    torch.testing.assert_close((steps * normals).flatten(1).sum(1), gaps)
    assert bool(((images + steps >= -1e-12) & (images + steps <= 1 + 1e-12)).all())
    power = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    sizes = torch.linalg.vector_norm(steps.flatten(1), power, dim=1).tolist()
    for row, size in enumerate(sizes):
        oracle = least_change(images[row], normals[row], float(gaps[row]), norm)
        assert size == pytest.approx(oracle, abs=1e-8)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_plane_that_no_image_reaches_is_approached_as_far_as_possible(norm):
    image, normal = pixels(0.25, 0.5, 1.0, 0.3), pixels(1.0, -2.0, 3.0, 0.0)
    step = step_to_plane(image, normal, torch.tensor([50.0]), norm)
    torch.testing.assert_close(step, pixels(0.75, -0.5, 0.0, 0.0))
    flat = step_to_plane(image, torch.zeros_like(normal), torch.tensor([1.0]), norm)
    assert not flat.any()
    none = step_to_plane(image, normal, torch.tensor([0.0]), norm)
    assert not none.any()


def test_steps_do_not_depend_on_the_batch():
    generator = torch.Generator().manual_seed(3)
    images, normals = torch.rand(6, 3, 8, 8, generator=generator), torch.randn(6, 3, 8, 8)
    gaps = torch.randn(6, generator=generator) * 10
    for norm, row in itertools.product(("linf", "l2", "l1"), range(6)):
        whole = step_to_plane(images, normals, gaps, norm)[row]
        alone = step_to_plane(images[[row]], normals[[row]], gaps[[row]], norm)[0]
        torch.testing.assert_close(whole, alone)


def test_another_norm_is_one_line():
    with pytest.raises(ParameterError, match="the norm 'l0': take linf, l2 or l1"):
        step_to_plane(pixels(0.5), pixels(1.0), torch.ones(1), "l0")
