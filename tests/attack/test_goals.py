"""What an attack may aim at, and the ball that the base class holds it to."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from torch import nn

from timmscope import (
    AttackTechnique,
    HookedModel,
    Norm,
    ObjectiveError,
    ParameterError,
    TechniqueError,
    class_logit,
    load_model,
    load_result,
    technique,
)

FGSM = technique("fgsm")
PGD = technique("pgd")
PICTURES = torch.full((4, 3, 4, 4), 0.5) + torch.linspace(-0.1, 0.1, 192).view(4, 3, 4, 4)


# An objective and a value instead of a class


@pytest.mark.parametrize("sign", [1, -1])
def test_an_objective_reaches_exactly_what_a_linear_model_allows(sign, linear_model, tmp_path):
    epsilon = 0.01
    slope = float(linear_model.module.fc.weight[2].detach().abs().sum())
    before = sign * linear_model(PICTURES)[:, 2]
    reachable = before + epsilon * slope
    aim = class_logit(2) * sign
    value = float(reachable.sort().values[1:3].mean())  # two images can reach it
    result = FGSM(epsilon=epsilon)(linear_model, PICTURES, objective=aim, value=value)
    assert result.success.tolist() == (reachable >= value).tolist()
    assert int(result.success.sum()) == 2
    torch.testing.assert_close(result.scores_before, before)
    torch.testing.assert_close(result.scores_after, reachable)
    assert (result.value, result.targets) == (value, None)
    rows = result.summary()
    assert rows[0]["objective"] == result.objective == str(aim)
    assert rows[0]["score_after"] == pytest.approx(float(reachable[0]))
    assert result.provenance.call == {"objective": str(aim), "value": value}
    again = FGSM(**result.provenance.parameters)(linear_model, PICTURES, **result.provenance.call)
    assert torch.equal(again.images, result.images)
    kept = load_result(result.save(tmp_path))
    assert torch.equal(kept.scores_after, result.scores_after)
    texts = {t.get_text() for t in result.figure().findobj(lambda a: hasattr(a, "get_text"))}
    assert {"reached", "not reached"} <= texts


def test_images_that_have_the_value_are_left_alone(linear_model):
    scores = linear_model(PICTURES)[:, 2]
    value = float(scores.median())
    result = PGD(steps=3)(linear_model, PICTURES, objective="class:2", value=value)
    already = scores >= value
    assert result.already_wrong.tolist() == already.tolist()
    assert torch.equal(result.images[already], PICTURES[already])
    assert result.radius[already].tolist() == [0.0] * int(already.sum())
    assert result.clean_accuracy == 1.0  # labels are the model's own predictions


def test_an_objective_may_name_a_class_for_each_image(linear_model):
    scores = linear_model(PICTURES)
    aim = class_logit([0, 1, 2, 0])
    value = float(scores[1, 1]) - 1e-3  # the second image has it, so rows are left out
    whole = PGD(steps=4)(linear_model, PICTURES, objective=aim, value=value)
    assert bool(whole.already_wrong[1])
    for size in (1, 2, 3):
        split = PGD(steps=4)(linear_model, PICTURES, objective=aim, value=value, batch_size=size)
        torch.testing.assert_close(split.images, whole.images)
    own = [float(linear_model(whole.images)[row, [0, 1, 2, 0][row]]) for row in range(4)]
    assert whole.scores_after.tolist() == pytest.approx(own, rel=1e-6)


def test_a_unit_of_an_encoder_without_classes_is_lowered(tmp_path):
    model = load_model("random:resnet18?num_classes=0&img_size=32&seed=0")
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = model.score(images, "layer1[3]").detach()
    value = -0.97 * float(before.min())
    result = PGD(steps=10)(model, images, objective="-layer1[3]", value=value)
    assert bool(result.success.all())
    after = model.score(result.images, "layer1[3]")
    assert bool((after <= -value).all())
    assert float(result.linf.max()) <= 8 / 255 + 1e-6
    assert (len(result.before), result.class_names) == (0, [])
    assert math.isnan(result.clean_accuracy)
    assert math.isnan(result.robust_accuracy)
    assert "label" not in result.summary()[0]
    assert torch.equal(load_result(result.save(tmp_path)).success, result.success)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ({"objective": "class:1"}, ParameterError, "class:1 needs a value to reach"),
        ({"objective": "class:1", "value": math.nan}, ParameterError, "a finite number"),
        ({"objective": "class:1", "value": "1"}, ParameterError, "a finite number"),
        ({"value": 1.0}, ParameterError, "a value is for an objective to reach"),
        ({"objective": 1, "value": 1, "targets": 2}, ParameterError, "takes the place of labels"),
        ({"objective": 1, "value": 1, "labels": 2}, ParameterError, "takes the place of labels"),
        ({"objective": "class:7", "value": 1}, ObjectiveError, "there is no class 7"),
        ({"objective": "layer9[1]", "value": 1}, Exception, "layer9"),
    ],
)
def test_a_goal_that_makes_no_sense_is_one_line(call, error, says, linear_model):
    with pytest.raises(error, match=says) as caught:
        FGSM()(linear_model, PICTURES, **call)
    assert "\n" not in str(caught.value)


# The ball


class Pushes(AttackTechnique):
    """Adds a fixed change, whatever the radius."""

    push: float = 0.2
    """Change of the first pixels."""
    pixels: int = 1
    """Number of changed values."""

    def perturb(self, model, images, goal):
        changed = images.flatten(1).clone()
        changed[:, : self.pixels] += self.push
        return changed.view_as(images)


@pytest.mark.parametrize(
    ("norm", "epsilon", "size"),
    [("linf", 0.19, "L∞ norm 0.2"), ("l2", 0.3, "L2 norm 0.4"), ("l1", 0.7, "L1 norm 0.8"),
     ("l0", 3, "L0 norm 4")],
)  # fmt: skip
def test_a_change_outside_of_the_ball_is_an_error_that_names_the_plugin(
    norm, epsilon, size, linear_model
):
    attack = Pushes(norm=norm, epsilon=epsilon, pixels=4)
    with pytest.raises(TechniqueError) as caught:
        attack(linear_model, PICTURES)
    told = str(caught.value)
    assert "Pushes returned a change of " + size in told
    assert f"expected at most epsilon, {epsilon:g}" in told
    assert "\n" not in told
    Pushes(norm=norm, epsilon=epsilon * 1.5, pixels=4)(linear_model, PICTURES)


def test_a_method_that_changes_its_images_in_place_is_measured_from_the_originals(linear_model):
    class InPlace(Pushes):
        def perturb(self, model, images, goal):
            images += self.push
            return images

    with pytest.raises(TechniqueError, match=r"norm 0\.2; expected at most epsilon, 0\.1"):
        InPlace(epsilon=0.1)(linear_model, PICTURES)


def test_each_norm_has_its_facts_and_its_radius(linear_model):
    facts: dict[Norm, float] = {"linf": 0.2, "l2": 0.4, "l1": 0.8, "l0": 2.0}
    for norm, size in facts.items():
        result = Pushes(norm=norm, epsilon=1 if norm == "linf" else 5, pixels=4, push=0.2)(
            linear_model, PICTURES, objective="class:0", value=-1e9
        )
        assert bool(result.already_wrong.all())
        assert result.radius.tolist() == [0.0] * 4
        result = Pushes(norm=norm, epsilon=1 if norm == "linf" else 5, pixels=4, push=0.2)(
            linear_model, PICTURES, objective="class:0", value=1e9
        )
        assert result.radius.tolist() == [math.inf] * 4
        assert result.summary()[0]["radius"] == math.inf
        columns = {"linf": 0.2, "l2": 0.4, "l1": 0.8, "l0": 4}
        for name, value in columns.items():
            assert getattr(result, name).tolist() == pytest.approx([value] * 4, rel=1e-5)
        assert size  # each norm was tried


class Halving(AttackTechnique):
    """The nearest point beyond a hyperplane, by the formula for two classes of a linear model."""

    kind = "minimum"
    norm: Literal["l2"] = "l2"

    def perturb(self, model, images, goal):
        outputs, gradient = goal.gradient(model, images, "margin")
        margin = goal.loss(outputs, "margin")
        length = gradient.flatten(1).norm(dim=1)
        step = (-margin / length + 1e-4) / length
        return (images + step.view(-1, 1, 1, 1) * gradient).clamp(0, 1)


@pytest.fixture
def plane() -> HookedModel:
    """Two classes: the sign of the mean above 0.5."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([[0.0], [1.0]]).expand(2, 48) / 48)
        module[1].bias.copy_(torch.tensor([0.0, -0.5]))
    return HookedModel(module, mean=(0,) * 3, std=(1,) * 3, input_size=(3, 4, 4))


def test_an_attack_of_least_norm_has_a_radius_and_gives_up_on_clean_images(plane):
    means = torch.tensor([0.45, 0.40, 0.25, 0.60])
    images = means.view(4, 1, 1, 1).expand(4, 3, 4, 4).clone()
    labels = [0, 0, 0, 0]  # the last is misclassified from the start
    distances = (0.5 - means[:3]) * 48**0.5
    full = Halving()(plane, images, labels)
    assert full.success.tolist() == [True, True, True, False]
    assert full.radius.tolist() == pytest.approx([*distances.tolist(), 0.0], abs=1e-3)
    near = Halving(epsilon=float(distances[1]) + 0.01)(plane, images, labels)
    assert near.success.tolist() == [True, True, False, False]
    assert near.radius.tolist()[2] == math.inf
    assert torch.equal(near.images[2], images[2])
    assert near.after.tolist() == [1, 1, 0, 1]
    assert near.l2[2] == 0
    for radius in (0.3, 0.5, 1.0, 2.0):  # one run gives the whole curve
        at = Halving(epsilon=radius)(plane, images, labels)
        assert at.robust_accuracy == float((full.radius > radius).float().mean())


def test_a_failure_of_an_attack_of_least_norm_returns_the_original(linear_model):
    class Fails(Halving):
        def perturb(self, model, images, goal):
            return images * 0.9

    found = linear_model(PICTURES * 0.9).argmax(1) != linear_model(PICTURES).argmax(1)
    result = Fails()(linear_model, PICTURES)
    assert result.success.tolist() == found.tolist()
    expected = torch.where(found[:, None, None, None], PICTURES * 0.9, PICTURES)
    assert torch.equal(result.images, expected)
    assert bool((result.success_8bit <= result.success).all())


def test_any_attack_takes_the_radius_from_outside(linear_model):
    kinds: list[Any] = [FGSM, PGD, Pushes]
    for kind in kinds:
        settings = {"epsilon": 0.05, **({"push": 0.05} if kind is Pushes else {})}
        result = kind(**settings)(linear_model, PICTURES)
        assert float(result.linf.max()) == pytest.approx(0.05, abs=1e-6)
        assert result.norm == "linf"


# The step of success


def test_pgd_notes_after_how_many_steps_an_image_was_first_fooled(curved, images):
    labels = curved(images).argmax(1)
    settings = {"epsilon": 0.05, "steps": 20, "random_start": False, "loss": "margin"}
    result = PGD(**settings)(curved, images, labels)
    noted = result.notes["first_success_step"]
    fooled = [
        PGD(**settings | {"steps": count, "step_size": 0.00625})(curved, images, labels).success
        for count in range(1, 20)
    ]
    for row, step in enumerate(noted):
        own = [bool(each[row]) for each in fooled]
        assert step == (own.index(True) + 1 if any(own) else None)
    assert len({*noted}) > 2
    assert result.summary()[0]["first_success_step"] == noted[0]


def test_steps_of_success_count_on_over_restarts(curved, images):
    labels = curved(images).argmax(1)
    result = PGD(epsilon=0.03, steps=2, restarts=6)(curved, images, labels, seed=1)
    for row, step in enumerate(result.notes["first_success_step"]):
        assert (step is not None) == bool(result.success[row])
        if step:
            assert int(result.backwards[row]) <= -(-step // 2) * 2
