"""APGD, FAB, Square and AutoAttack: linear models, goals of all kinds, cost, and few classes."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from tests.attack.conftest import Curved
from tests.attack.test_properties import Passes
from torch import Tensor, nn

from timmscope import HookedModel, UnsupportedModel, technique

APGD: Any = technique("apgd")
AUTOATTACK: Any = technique("autoattack")
FAB: Any = technique("fab")
PGD: Any = technique("pgd")
SQUARE: Any = technique("square")

NORMS = ["linf", "l2", "l1"]
RADII = {"linf": 0.012, "l2": 0.06, "l1": 0.2}
"""Radii at which some of the images are broken and some are not."""


def attacks(norm: str, **radius: float) -> dict[str, Any]:
    """Each attack with few steps."""
    return {
        "apgd": APGD(norm=norm, steps=10, **radius),
        "apgd-t": APGD(norm=norm, steps=8, loss="dlr", target_classes=3, **radius),
        "fab": FAB(norm=norm, steps=8, restarts=2, **radius),
        "square": SQUARE(norm=norm, queries=40, **radius),
        "autoattack": AUTOATTACK(norm=norm, steps=4, queries=30, target_classes=3, **radius),
    }


NAMES = ["apgd", "apgd-t", "fab", "square", "autoattack"]
by_name = pytest.mark.parametrize("name", NAMES)
by_norm = pytest.mark.parametrize("norm", NORMS)
by_both = pytest.mark.parametrize(
    ("name", "norm"),  # the members of autoattack are tried in each norm
    [(name, norm) for name in NAMES for norm in NORMS if name != "autoattack" or norm == "linf"],
)


@pytest.fixture
def curved() -> HookedModel:
    """The shared small classifier, with every weight from a seed."""
    torch.manual_seed(0)
    return HookedModel(Curved(), mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(3, 4, 4))


# Linear models, where the smallest change is known


def distances(model: HookedModel, images: Tensor, norm: str) -> Tensor:
    """Distance of each image to the hyperplane; only in l1 do pixels end at the edge of the box."""
    weight = model.module.weight.detach()
    margin = images.flatten(1) @ weight + model.module.bias.detach()
    if norm != "l1":
        return margin.abs() / (weight.abs().sum() if norm == "linf" else weight.norm())
    # The values of the largest weights move to the edge of the box, one after the other.
    up = weight * margin.sign()[:, None] < 0
    room = torch.where(up, 1 - images.flatten(1), images.flatten(1))
    order = weight.abs().argsort(descending=True)
    found = []
    for rooms, gap in zip(room[:, order].tolist(), margin.abs().tolist(), strict=True):
        size, left = 0.0, gap
        for there, slope in zip(rooms, weight.abs()[order].tolist(), strict=True):
            step = min(there, left / slope)
            size, left = size + step, left - step * slope
        found.append(size)
    return torch.tensor(found)


@pytest.mark.parametrize(
    ("attack", "settings", "factor"),
    [
        ("apgd", {"steps": 60}, {"linf": 1.001, "l2": 1.001, "l1": 1.02}),
        ("pgd", {"steps": 40, "random_start": False}, {"linf": 1.001, "l2": 1.001, "l1": 2.0}),
        ("square", {"queries": 150}, {"linf": 1.6, "l2": 2.5, "l1": 4.0}),
    ],
)
@by_norm
def test_a_linear_model_flips_only_beyond_its_distance(
    attack, settings, factor, norm, plane, images
):
    """A fixed step in l1 moves a fifth of the values alike, where one of them would do the most."""
    image = images[5:6].double()
    distance = float(distances(plane, image, norm))
    for scale, flips in ((0.999, False), (factor[norm], True)):
        made: Any = technique(attack)(norm=norm, epsilon=distance * scale, **settings)
        assert made(plane, image).success.tolist() == [flips]


@by_norm
def test_fab_finds_the_distance_of_a_linear_model(norm, plane, images):
    images = images.double()
    far = distances(plane, images, norm)
    result = FAB(norm=norm, steps=30)(plane, images)
    assert bool(result.success.all())
    ratio = result.radius / far
    assert float(ratio.min()) >= 1 - 1e-6
    assert float(ratio.max()) <= 1.01
    near = FAB(norm=norm, steps=30, epsilon=float(far[3]) * 1.02)(plane, images)
    assert torch.equal(near.success, result.radius <= float(far[3]) * 1.02)
    assert torch.equal(near.images[~near.success].float(), images[~near.success].float())


def test_fab_meets_the_edges_of_the_box(plane):
    """Two thirds of the pixels of a black and white image cannot move the way the plane is."""
    noise = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    images = noise.round().double()
    for norm in ("linf", "l1"):
        result = FAB(norm=norm, steps=30)(plane, images)
        assert bool(result.success.all())
        assert float(result.images.min()) >= 0
        assert float(result.images.max()) <= 1
        if norm == "l1":
            assert float((result.radius / distances(plane, images, norm)).max()) <= 1.01


# The schedule of APGD


def test_checks_come_when_the_paper_says():
    from timmscope_attack.adaptive import _checks

    assert list(_checks(100, False)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(_checks(100, False).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert list(_checks(40, True)) == list(range(1, 40))


class Valley(nn.Module):
    """Two logits, 0 and -10 |mean - 0.5|: large steps cross the ridge of the second."""

    num_classes = 2

    def forward(self, images: Tensor) -> Tensor:
        height = -10 * (images.mean((1, 2, 3)) - 0.5).abs()
        return torch.stack([torch.zeros_like(height), height], 1)


def test_apgd_ends_on_a_ridge_that_a_fixed_step_crosses():
    model = HookedModel(Valley(), mean=(0,), std=(1,), input_size=(1, 2, 2))
    image = torch.full((1, 1, 2, 2), 0.43)
    aim = {"objective": "class:1", "value": 1.0}
    ours = APGD(epsilon=0.1)(model, image, **aim).scores_after
    fixed = PGD(epsilon=0.1, steps=100, step_size=0.2, random_start=False)(model, image, **aim)
    assert float(fixed.scores_after) < -0.2
    assert float(ours) > -0.01


# Goals, batches and counts


@by_both
def test_results_do_not_depend_on_the_batch(name, norm, curved, images):
    attack = attacks(norm, epsilon=RADII[norm])[name]
    whole = attack(curved, images, seed=4)
    assert 0 < int(whole.success.sum()) < 8
    split = attack(curved, images, seed=4, batch_size=3)
    assert torch.equal(whole.success, split.success)
    torch.testing.assert_close(whole.images, split.images, atol=1e-4, rtol=0)
    assert torch.equal(whole.images, attack(curved, images, seed=4).images)
    assert whole.notes == split.notes


@by_name
def test_targets_are_reached_and_claimed_only_then(name, curved, images):
    labels = curved(images).argmax(1)
    targets = (labels + 1) % 4
    attack = attacks("l2", epsilon=15 * RADII["l2"])[name]
    result = attack(curved, images, labels, targets=targets)
    assert torch.equal(result.success, curved(result.images).argmax(1) == targets)
    assert int(result.success.sum()) >= 4


@by_name
def test_an_objective_is_raised_to_its_value(name, curved, images):
    before = curved(images)[:, 2]
    value = float(before.max()) + 0.02
    result = attacks("l1", epsilon=15 * RADII["l1"])[name](
        curved, images, objective="class:2", value=value
    )
    assert torch.equal(result.success, result.scores_after >= value)
    assert int(result.success.sum()) >= 4


@by_name
def test_a_grey_image_is_attacked(name):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 5))
    model = HookedModel(network, mean=(0.5,), std=(0.5,), input_size=(1, 8, 8))
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for norm, radius in (("linf", 0.2), ("l2", 1.5), ("l1", 8.0)):
        result = attacks(norm, epsilon=radius)[name](model, images)
        assert bool(result.success.all()), norm


@by_name
def test_passes_are_counted_as_hooks_see_them(name, curved, images):
    attack = attacks("linf", epsilon=RADII["linf"])[name]
    attack(curved, images)  # the first call traces the model once
    with Passes(curved.module) as seen:
        result = attack(curved, images, batch_size=5)
    assert int(result.forwards.sum()) == seen.forwards - 3 * len(images)
    assert int(result.backwards.sum()) == seen.backwards
    if name == "square":
        assert torch.equal(result.queries, result.forwards)
        assert int(result.queries.max()) == 40
        noted = result.notes["queries_to_success"]
        assert noted == [
            int(count) if fooled else None
            for count, fooled in zip(result.queries, result.success, strict=True)
        ]
    if name in ("square", "autoattack"):
        assert len(set(result.forwards.tolist())) > 1  # solved images drop out


def test_an_image_that_is_fooled_costs_less_where_apgd_may_stop(curved, images):
    full = APGD(epsilon=RADII["linf"], steps=10)(curved, images)
    early = APGD(epsilon=RADII["linf"], steps=10, stop_when_fooled=True)(curved, images)
    assert torch.equal(full.success, early.success)
    assert full.backwards.tolist() == [10] * 8
    assert full.forwards.tolist() == [11] * 8
    steps = early.notes["first_success_step"]
    assert early.forwards.tolist() == [11 if step is None else step + 1 for step in steps]
    assert steps == full.notes["first_success_step"]


def test_the_least_change_is_no_larger_where_fab_goes_on(curved, images):
    radius = 2 * RADII["l2"]
    full = FAB(norm="l2", epsilon=radius, steps=10)(curved, images)
    early = FAB(norm="l2", epsilon=radius, steps=10, stop_within_epsilon=True)(curved, images)
    assert torch.equal(full.success, early.success)
    assert bool((full.radius <= early.radius + 1e-6).all())
    assert int(early.forwards.sum()) < int(full.forwards.sum()) / 2
    each = FAB(norm="l2", epsilon=radius, steps=10, one_by_one=True)(curved, images)
    assert bool((each.radius <= full.radius * 1.05).all())


# AutoAttack


def test_autoattack_breaks_what_any_member_breaks_and_says_which(curved, images):
    for norm in ("l2", "l1"):
        made = attacks(norm, epsilon=RADII[norm])
        result = made["autoattack"](curved, images)
        names = result.notes["broken_by"]
        assert [by is not None for by in names] == result.success.tolist()
        assert bool((result.success | ~made["apgd"](curved, images).success).all())
        assert torch.equal(result.images[~result.success], images[~result.success])


class Saturated(nn.Module):
    """Logits so large that the softmax has no slope: only the margin and DLR have."""

    num_classes = 4

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = 1e4 * self.inner(images)
        return logits


class Stepped(nn.Module):
    """Logits of images of 64 grey levels, without a gradient."""

    num_classes = 4

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner((images * 16).round() / 16 + 0 * images)
        return logits


@pytest.mark.parametrize(("planted", "member"), [(Saturated, "apgd-t"), (Stepped, "square")])
def test_members_break_what_others_cannot(planted, member, curved, images):
    made = {"mean": curved.mean, "std": curved.std, "input_size": curved.input_size}
    model = HookedModel(planted(curved.module), **made)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about gradients that are zero
        result = AUTOATTACK(epsilon=0.06, steps=5, queries=150, target_classes=3)(model, images)
    assert int(result.success.sum()) >= 4
    assert member in result.notes["broken_by"]


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_have_another_loss_and_fewer_targets_and_that_is_said(classes, images):
    torch.manual_seed(0)
    model = HookedModel(Curved(classes), mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(3, 4, 4))
    with pytest.warns(UserWarning, match="raises the margin") as caught:
        result = AUTOATTACK(epsilon=0.1, steps=8, queries=20)(model, images)
    told = " ".join(str(each.message) for each in caught)
    assert f"autoattack tries {classes - 1} target class" in told
    assert f"autoattack raises the margin: dlr needs 4 classes, {model.id} has {classes}" in told
    assert result.notes["loss_used"] == "margin"
    assert result.notes["target_classes_used"] == classes - 1
    assert int(result.success.sum()) >= 6
    for made in (APGD(loss="dlr", epsilon=0.1, steps=5), PGD(loss="dlr", epsilon=0.1, steps=5)):
        if classes == 2:
            with pytest.warns(UserWarning, match="raises the margin: dlr needs 3 classes"):
                result = made(model, images)
            assert result.notes["loss_used"] == "margin"
        else:
            assert "loss_used" not in made(model, images).notes


def test_a_random_defence_is_attacked_over_draws():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 5),
    )  # fmt: skip
    with torch.no_grad():
        network[-1].bias[0] += 0.3  # so that no draw has another prediction
    plain = HookedModel(network, mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(3, 16, 16))
    model = plain.defended(["randomized-resize"])
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    result = AUTOATTACK(epsilon=1e-5, steps=3, draws=4)(model, images)
    assert result.notes["broken_by"] == [None, None]
    # Two members, 3 steps with gradients and a last forward each, and a judgement, of 4 draws each.
    assert result.backwards.tolist() == [2 * 3 * 4] * 2
    assert result.forwards.tolist() == [2 * (4 + 1) * 4] * 2
    broken = AUTOATTACK(epsilon=0.8, steps=3, draws=4)(model, images)
    assert broken.notes["broken_by"] == ["apgd-ce"] * 2
    queried = SQUARE(epsilon=1e-5, queries=50, draws=10)(model, images)
    assert queried.queries.tolist() == [50, 50]


# Black boxes


def test_square_works_on_a_prediction_function_and_others_refuse_it(curved, images):
    for outputs in ("logits", "probabilities"):
        seen: list[int] = []

        def predict(given: Tensor, outputs: str = outputs, seen: list[int] = seen) -> Tensor:
            seen.append(len(given))
            logits = curved(given)
            return logits if outputs == "logits" else logits.softmax(1)

        model = HookedModel.of_function(
            predict, outputs=outputs, input_size=(3, 4, 4), id="service:1", num_classes=4
        )
        result = SQUARE(epsilon=0.03, queries=100)(model, images)
        expected = SQUARE(epsilon=0.03, queries=100)(curved, images)
        assert torch.equal(result.success, expected.success)
        assert int(result.success.sum()) >= 4
        assert int(result.queries.max()) <= 100
        assert sum(seen) >= int(result.queries.sum())
    for attack in (APGD(), FAB(), AUTOATTACK()):
        with pytest.raises(UnsupportedModel, match="has no gradient") as caught:
            attack(model, images)
        assert "\n" not in str(caught.value)


@by_norm
def test_square_draws_windows_of_its_own_for_each_image(norm):
    """On a model that always gets worse, all squares are kept, and their places differ."""
    from timmscope_attack.square import _bump, _square

    generator = torch.Generator().manual_seed(0)
    images = torch.full((5, 3, 12, 10), 0.5)
    ball = SQUARE(norm=norm, epsilon={"linf": 0.1, "l2": 1.0, "l1": 5.0}[norm]).ball(images)
    start = images.clone()
    start[:, :, 0, 0] += 0.05
    numbers = torch.rand(5, 8, generator=generator)
    propose = _square if norm == "linf" else _bump
    changed = (propose(images, start, ball, 3, numbers) != images).any(1)
    assert bool(ball.holds(propose(images, start, ball, 3, numbers) - images).all())
    assert len({tuple(each.flatten().tolist()) for each in changed}) == 5
    alone = propose(images[2:3], start[2:3], ball, 3, numbers[2:3])
    torch.testing.assert_close(alone, propose(images, start, ball, 3, numbers)[2:3])
