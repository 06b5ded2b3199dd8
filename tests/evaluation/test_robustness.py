"""`robustness` agrees with the attacks that it runs, resumes, and refuses wrong input in a line."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tests.digits.images import write_digits
from tests.digits.load import digits_network
from torch import Tensor

from timmscope import (
    Adversarial,
    AttackTechnique,
    Goal,
    HookedModel,
    ImageError,
    ModelError,
    ObjectiveError,
    ParameterError,
    Robustness,
    StoreMismatch,
    TechniqueError,
    load_result,
    open_images,
    robustness,
    technique,
)
from timmscope.techniques.over.columns import share_interval
from timmscope_attack import FGSM, PGD
from timmscope_defence import JPEG

COUNT = 24
RADII = [0.05, 0.1]


class Searched(AttackTechnique):
    """The smallest of some radii at which a step along the gradient fools the model."""

    kind: ClassVar[Any] = "minimum"

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        _, gradient = goal.gradient(model, images)
        found = images.clone()
        for radius in (0.2, 0.12, 0.06, 0.03):
            changed = (images + radius * gradient.sign()).clamp(0, 1)
            reached = goal.reached(goal.outputs(model, changed))
            found[reached] = changed[reached]
        return found


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), trained=1, held_out=COUNT)[1]


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return digits_network("standard")


@pytest.fixture(scope="module")
def images(model: HookedModel, digits: Path) -> Tensor:
    source = open_images(digits)
    return torch.stack([model.preprocessing.load(source, number)[0] for number in range(COUNT)])


@pytest.fixture(scope="module")
def labels(digits: Path) -> list[int]:
    return [int(label) for label in open_images(digits).labels or ()]


@pytest.fixture(scope="module")
def judged(model: HookedModel, digits: Path) -> Robustness:
    attacks = [PGD(steps=5), "fgsm", Searched()]
    return robustness(
        model, digits, attacks, defences=["jpeg quality=50"], epsilons=RADII, batch_size=7
    )


def row_of(result: Robustness, attack: str, epsilon: float | None, how: str) -> int:
    (found,) = [
        number
        for number, row in enumerate(result.rows)
        if (row["attack"], row["epsilon"], result.how(number)) == (attack, epsilon, how)
    ]
    return found


def radius_of(found: Adversarial) -> Tensor:
    size = torch.where(found.success, found.linf.double(), torch.inf)
    return torch.where(found.already_wrong, 0.0, size)


@pytest.mark.parametrize("epsilon", RADII)
def test_accuracies_are_those_of_the_attacks_in_one_call(judged, model, images, labels, epsilon):
    for label, attack in {
        "pgd steps=5": PGD(steps=5, epsilon=epsilon),
        "fgsm": FGSM(epsilon=epsilon),
    }.items():
        alone = attack(model, images, labels)
        row = row_of(judged, label, epsilon, "direct")
        right = alone.before == alone.labels
        assert judged.accuracy(row).hits == int((right & ~alone.success).sum())
        assert judged.accuracy(row).count == COUNT
        torch.testing.assert_close(judged.radius[row], radius_of(alone).clamp(max=epsilon).where(
            alone.success, radius_of(alone)), atol=1e-6, rtol=0)  # fmt: skip
        survived = alone.success_8bit & alone.success
        assert judged.survival(row).hits == int(survived.sum())
        assert judged.survival(row).count == int(alone.success.sum())
        assert torch.equal(judged.forwards[row][right].long(), alone.forwards[right])
        assert torch.equal(judged.backwards[row][right].long(), alone.backwards[right])
    clean = judged.clean()
    assert clean.hits == int((model(images).argmax(1) == torch.tensor(labels)).sum())
    assert clean.interval == share_interval(clean.hits, COUNT)


def test_an_attack_of_least_norm_gives_every_radius_from_one_run(judged, model, images, labels):
    alone = Searched()(model, images, labels)
    row = row_of(judged, "Searched", None, "direct")
    expected = radius_of(alone)
    torch.testing.assert_close(judged.radius[row], expected, atol=1e-6, rtol=0)
    for epsilon in (0.01, 0.04, 0.07, 0.15):
        assert judged.accuracy(row, epsilon).hits == int((expected > epsilon).sum())
    assert 0 < judged.accuracy(row, 0.15).hits < judged.accuracy(row, 0.01).hits


def test_the_worst_case_is_what_no_attack_within_the_radius_breaks(judged, model, images, labels):
    right = model(images).argmax(1) == torch.tensor(labels)
    for epsilon in RADII:
        broken = torch.zeros(COUNT, dtype=torch.bool)
        for size in [radius for radius in RADII if radius <= epsilon]:
            broken |= PGD(steps=5, epsilon=size)(model, images, labels).success
            broken |= FGSM(epsilon=size)(model, images, labels).success
        least = Searched()(model, images, labels)
        broken |= least.success & (least.linf <= epsilon)
        assert judged.worst("linf", epsilon).hits == int((right & ~broken).sum())


def test_oblivious_is_made_around_the_defence_and_adaptive_through_it(
    judged, model, images, labels
):
    defended, truth = model.defended([JPEG(quality=50)]), torch.tensor(labels)
    right = defended(images).argmax(1) == truth
    made = PGD(steps=5, epsilon=0.1)(model, images, labels).images
    still = right & (defended(made).argmax(1) == truth)
    row = row_of(judged, "pgd steps=5", 0.1, "oblivious")
    assert judged.accuracy(row).hits == int(still.sum())
    through = PGD(steps=5, epsilon=0.1)(defended, images, labels)
    row = row_of(judged, "pgd steps=5", 0.1, "adaptive")
    assert judged.accuracy(row).hits == int((right & ~through.success).sum())
    assert judged.clean("jpeg quality=50").hits == int(right.sum())
    worst = judged.worst("linf", 0.1, "jpeg quality=50").hits
    assert worst <= min(int(still.sum()), int((right & ~through.success).sum()))


def test_the_result_is_saved_loaded_and_written_for_people(judged, tmp_path):
    kept = load_result(judged.save(tmp_path / "out"), Robustness)
    assert torch.equal(kept.radius.nan_to_num(-1), judged.radius.nan_to_num(-1))
    assert kept.rows == judged.rows
    assert kept.summary() == judged.summary()
    page = (tmp_path / "out/report.html").read_text()
    share = judged.worst("linf", 0.1)
    low, high = (100 * end for end in share.interval)
    assert f"{100 * share.value:.0f} ({low:.0f}–{high:.0f})" in page
    assert "jpeg quality=50" in page
    table = (tmp_path / "out/images.csv").read_text().splitlines()
    assert len(table) == COUNT + 1
    assert (tmp_path / "out/figure.png").stat().st_size > 20_000
    facts = [row for row in judged.summary() if row["attack"] == "worst case"]
    assert len(facts) == 2 * len(RADII)


def test_transfer_is_judged_on_images_that_both_models_classify_right(
    model, digits, images, labels
):
    other = digits_network("fast")
    result = robustness(model, digits, PGD(steps=5, epsilon=0.1), others=[other])
    rates = result.transfer("pgd epsilon=0.1 steps=5", 0.1)
    truth = torch.tensor(labels)
    right = [each(images).argmax(1) == truth for each in (model, other)]
    both = right[0] & right[1]
    for source, made_on in enumerate((model, other)):
        made = PGD(steps=5, epsilon=0.1)(made_on, images, labels).images
        for target, judged_on in enumerate((model, other)):
            chosen = both if source != target else right[source]
            broken = judged_on(made).argmax(1) != truth
            assert float(rates[source, target]) == pytest.approx(
                float(broken[chosen].double().mean())
            )
    assert result.how(1) == f"from {model.id}"
    assert result.figure()


def test_images_for_a_model_of_another_size_are_scaled(images):
    small = HookedModel(_Linear(8), mean=(0,), std=(1,), input_size=(1, 8, 8), id="module:small")
    large = HookedModel(_Linear(12), mean=(0,), std=(1,), input_size=(1, 12, 12), id="module:large")
    result = robustness(small, images[:6], FGSM(epsilon=0.1), others=[large])
    made = FGSM(epsilon=0.1)(small, images[:6], small(images[:6]).argmax(1).tolist()).images
    scaled, clean = (
        torch.nn.functional.interpolate(each, (12, 12), mode="bilinear", antialias=True)
        for each in (made, images[:6])
    )
    truth = small(images[:6]).argmax(1)
    right = large(clean).argmax(1) == truth
    expected = torch.where(right & (large(scaled).argmax(1) != truth), 1, 0)
    row = next(n for n, row in enumerate(result.rows) if row["source"] == 0 and row["target"] == 1)
    assert (result.radius[row].isfinite() & (result.radius[row] > 0)).long().tolist() == (
        expected.tolist()
    )


class _Linear(torch.nn.Module):
    num_classes = 3

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        generator = torch.Generator().manual_seed(side)
        self.weight = torch.nn.Parameter(torch.randn(3, side * side, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


def run_into(folder: Path, model: HookedModel, digits: Path) -> None:
    robustness(
        model, digits, ["pgd steps=2", "fgsm"], defences=["randomized-resize"], epsilons=0.1,
        out=folder, batch_size=16,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(model: HookedModel, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run_into(folder, model, digits)
    return folder


@pytest.mark.parametrize("kept", [0, 1, 6])
def test_a_report_cut_anywhere_resumes_to_the_same_bytes(model, digits, whole, tmp_path, kept):
    lines = (whole / "records.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 2 * (1 + 2 * 2)
    cut = tmp_path / "cut"
    cut.mkdir()
    shutil.copy(whole / "robustness.json", cut)
    (cut / "records.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:41])
    run_into(cut, model, digits)
    assert files_of(cut) == files_of(whole)


@pytest.mark.slow
def test_checks_resume_to_the_same_bytes(model, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("timmscope.evaluation.under_attack.checks.bench.LONGER", (20, 2))
    source = open_images(digits)
    images = model.images([np.asarray(source.load(number)) for number in range(3)])

    def run(folder: Path) -> Robustness:
        return robustness(
            model, images, "fgsm", epsilons=0.1, checks=True, out=folder, batch_size=2
        )

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    first = run(whole)
    assert [check["number"] for check in first.checks] == list(range(1, 16))
    lines = (whole / "records.jsonl").read_bytes().splitlines(keepends=True)
    cut.mkdir()
    shutil.copy(whole / "robustness.json", cut)
    (cut / "records.jsonl").write_bytes(b"".join(lines[: len(lines) * 2 // 3]))
    run(cut)
    assert files_of(cut) == files_of(whole)


def test_another_report_in_the_same_folder_is_refused(model, digits, tmp_path):
    robustness(model, digits, "fgsm", epsilons=0.1, out=tmp_path / "out")
    with pytest.raises(StoreMismatch, match=r"epsilons\.linf"):
        robustness(model, digits, "fgsm", epsilons=0.2, out=tmp_path / "out")
    with pytest.raises(StoreMismatch, match=r"attacks\.fgsm"):
        robustness(model, digits, "pgd", epsilons=0.1, out=tmp_path / "out")


def test_images_without_labels_are_judged_against_predictions(model, images):
    result = robustness(model, images, "fgsm", epsilons=0.1)
    assert "the model's own predictions" in result.labels_from
    assert result.clean().value == 1
    assert result.labels.tolist() == model(images).argmax(1).tolist()


def test_labels_come_from_a_file_a_mapping_or_a_list(model, images, labels, tmp_path):
    file = tmp_path / "truth.csv"
    rows = "".join(f"{number},{label}\n" for number, label in enumerate(labels))
    file.write_text(f"path,label\n{rows}")
    by_name = {str(number): str(label) for number, label in enumerate(labels)}
    for given in (file, str(file), by_name, labels, torch.tensor(labels)):
        result = robustness(model, images, "fgsm", epsilons=0.1, labels=given)
        assert result.labels.tolist() == labels
        assert "predictions" not in result.labels_from


def test_an_unreadable_image_is_reported(model, digits, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    open_images(digits).load(0).save(folder / "a.png")
    (folder / "b.png").write_text("no picture")
    result = robustness(model, folder, "fgsm", epsilons=0.1)
    assert [each["image"] for each in result.unreadable] == ["b.png"]
    assert result.clean().count == 1
    (folder / "a.png").unlink()
    with pytest.raises(ImageError, match="none of the 1 images can be read"):
        robustness(model, folder, "fgsm", epsilons=0.1)


class Blind(JPEG):
    """A defence without a gradient."""

    backward = "none"


class Grey(AttackTechnique):
    uses_gradients: ClassVar[bool] = False

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        ball = self.ball(images)
        return (images + ball.epsilon * (0.5 - images).sign()).clamp(0, 1)


def test_an_attack_that_cannot_run_is_refused_beside_others_that_can(model, digits):
    blind = Blind(quality=50)
    result = robustness(model, digits, ["fgsm", Grey()], defences=[blind], epsilons=0.1)
    (refusal,) = result.refused
    assert refusal["attack"] == "fgsm at L∞ 0.1"
    assert "no gradient passes the defence" in refusal["reason"]
    assert result.accuracy(row_of(result, "fgsm", 0.1, "adaptive")).count == 0
    assert result.accuracy(row_of(result, "Grey", 0.1, "adaptive")).count == COUNT
    assert math.isnan(result.accuracy(row_of(result, "fgsm", 0.1, "adaptive")).value)
    with pytest.raises(TechniqueError, match="no gradient passes the defence"):
        robustness(model.defended([blind]), digits, ["fgsm"], epsilons=0.1)


@pytest.mark.parametrize(
    ("attacks", "arguments", "words"),
    [
        (["fgsm"], {"epsilons": [4]}, "for 4 of 255 grey levels write 4/255"),
        (["fgsm"], {"epsilons": "1,2"}, "for 1 of 255 grey levels write 1/255"),
        (["fgsm norm=l2"], {"epsilons": [64]}, "more than any L2 change of these images"),
        (["fgsm"], {"epsilons": "0"}, "is not above 0"),
        (["fgsm"], {"epsilons": "a/b"}, "'a/b' is no radius"),
        (["fgsm", "fgsm norm=l2"], {"epsilons": 0.1}, "give radii for each, as in linf=…"),
        (["fgsm"], {"epsilons": {"l2": [1]}}, "the attacks keep linf"),
        (["fgsm"], {"epsilons": {"l3": [1]}}, "'l3' is no norm"),
        (["fgsm epsilon=0.1"], {"epsilons": 0.1}, "epsilon of its own"),
        (["fgsm epsilon=4"], {}, "4/255 is 0.01569"),
        ([], {}, "name at least one attack"),
        (["fgsm", "fgsm"], {}, "fgsm is given twice"),
        (["jpeg"], {}, "only attacks of single images"),
        (["universal-perturbation"], {}, "only attacks of single images"),
        (["fgsm"], {"defences": ["fgsm"]}, "only techniques of the base defence"),
        (["fgsm"], {"defences": ["jpeg", "jpeg"]}, "jpeg is given twice"),
        (["fgsm"], {"labels": [10] * COUNT}, "the label '10' is no class"),
        (["fgsm"], {"labels": [1]}, "1 labels for 24 images"),
        (["fgsm"], {"labels": {"none": 1}}, "24 of 24 images have no label"),
        (["fgsm"], {"labels": "gone.csv"}, "no labels can be read from gone.csv"),
    ],
)
def test_wrong_input_is_one_line(model, digits, attacks, arguments, words):
    with pytest.raises(ParameterError) as caught:
        robustness(model, digits, attacks, **arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_models_that_cannot_be_judged_are_refused(model, digits):
    encoder = HookedModel(torch.nn.Flatten(), mean=(0,), std=(1,), input_size=(1, 8, 8))
    one = HookedModel(_one_class(), mean=(0,), std=(1,), input_size=(1, 8, 8))
    with pytest.raises(ObjectiveError, match="one class"):
        robustness(one, digits, "fgsm")
    with pytest.raises(ModelError, match="64 classes, "):
        robustness(model, digits, "fgsm", others=[encoder])


def _one_class() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1))


def test_radii_of_attacks_and_flags_may_be_fractions(model, digits):
    attack = technique("pgd")(epsilon="8/255", steps=1)
    assert attack.epsilon == 8 / 255
    result = robustness(model, digits, "fgsm", epsilons=["1/255", "4/255,8/255"])
    assert result.epsilons == {"linf": [1 / 255, 4 / 255, 8 / 255]}
