"""Wrong input is one clear line; a failure or any caller's state leaves the model as it was."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch

from timmscope import (
    HookedModel,
    ObjectiveError,
    ParameterError,
    load_model,
    load_result,
    technique,
)
from timmscope_registry.hooks import fingerprint

ATTACKS = [technique("fgsm")(), technique("pgd")(steps=3, restarts=2)]
by_title = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.title())


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("fgsm", {"epsilon": -0.1}, "'epsilon' of fgsm is -0.1: .*greater than or equal to 0"),
        ("fgsm", {"epsilon": 8}, r"pixel values are in \[0, 1\]: 8/255 is 0.03137"),
        ("fgsm", {"epsilon": float("nan")}, "'epsilon' of fgsm is nan"),
        ("fgsm", {"norm": "l1"}, "'norm' of fgsm is 'l1': .*'linf' or 'l2'"),
        ("pgd", {"steps": 0}, "'steps' of pgd is 0: .*greater than or equal to 1"),
        ("pgd", {"step_size": 0}, "'step_size' of pgd is 0: .*greater than 0"),
        ("pgd", {"restarts": 3, "random_start": False}, "restarts without random_start"),
        (
            "pgd",
            {"loss": "l1"},
            "'loss' of pgd is 'l1': .*'cross-entropy', 'margin', 'dlr' or 'logit'",
        ),
        ("pgd", {"step": 3}, "no parameter 'step'; did you mean 'steps'"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(name, settings, says):
    with pytest.raises(ParameterError, match=says) as caught:
        technique(name)(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "targets", "error", "says"),
    [
        (7, None, ObjectiveError, "classes 0 to 3, there is no class 7"),
        (-1, None, ObjectiveError, "there is no class -1"),
        ([0, 1], None, ObjectiveError, "2 labels for 8 images: give one, or one per image"),
        (None, [0, 1, 2], ObjectiveError, "3 targets for 8 images"),
        ("tabby", None, ObjectiveError, "classes without names: use a number instead of 'tabby'"),
        ([1] * 8, [2] * 7 + [1], ParameterError, "a target equals the image's label"),
    ],
)
def test_labels_and_targets_that_do_not_fit_are_refused(
    labels, targets, error, says, curved, images
):
    with pytest.raises(error, match=says) as caught:
        ATTACKS[0](curved, images, labels, targets=targets)
    assert "\n" not in str(caught.value)


def test_a_misspelt_label_names_the_nearest(lite0, photos):
    with pytest.raises(ObjectiveError, match=r"no class is called 'tigr cat'.*'tiger cat'"):
        ATTACKS[0](lite0, photos[:1], "tigr cat")


def test_a_model_without_classes_cannot_be_attacked():
    model = load_model("random:resnet18?num_classes=0&img_size=32")
    with pytest.raises(ObjectiveError, match=r"no class.*an attack needs a classifier"):
        ATTACKS[0](model, torch.rand(1, 3, 32, 32))


@by_title
@pytest.mark.parametrize("where", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_a_training_model_with_gradients_comes_back_untouched(attack, where, curved, images):
    expected = attack(curved, images).images
    curved.module.train()
    for weight in curved.module.parameters():
        weight.grad = torch.ones_like(weight)
    curved.module.last.bias.requires_grad_(False)
    with where():
        before = fingerprint(curved.module)
        result = attack(curved, images)
        assert fingerprint(curved.module).difference(before) == []
    assert torch.equal(result.images, expected)


@by_title
def test_a_failure_in_mid_forward_leaves_no_trace(attack, curved, images):
    attack(curved, images)
    curved.module.train()
    curved.module.broken = True
    before = fingerprint(curved.module)
    with pytest.raises(RuntimeError, match="lost in mid-forward"):
        attack(curved, images)
    assert fingerprint(curved.module).difference(before) == []


def test_the_summary_and_figure_name_the_target(lite0, photos):
    result = technique("fgsm")(epsilon=0.001)(lite0, photos[:1], targets="espresso maker")
    assert result.success.tolist() == [False]
    assert result.summary()[0]["target"] == "espresso maker"
    shown = [text.get_text() for text in result.figure().findobj(lambda a: hasattr(a, "get_text"))]
    assert "target espresso maker not reached" in shown


@by_title
def test_a_result_is_kept_and_read_back(attack, curved, images, tmp_path):
    from timmscope import load_result

    result = attack(curved, images, seed=3)
    result.save(tmp_path / "out")
    kept = load_result(tmp_path / "out")
    assert torch.equal(kept.images, result.images)
    assert kept.provenance == result.provenance
    assert kept.class_names == result.class_names


class Steep(torch.nn.Module):
    """Two logits, 10,000 times the mean above 0.5 and 0: the softmax saturates at once."""

    def forward(self, images):
        first = 1e4 * (images.mean((1, 2, 3)) - 0.5)
        return torch.stack([first, torch.zeros_like(first)], 1)


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_an_attack_that_meets_a_zero_gradient_says_so(name, tmp_path):
    model = HookedModel(Steep(), mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, 2, 2))
    images = torch.stack([torch.full((3, 2, 2), value) for value in (0.9, 0.5001, 0.4)])
    settings = {"steps": 4, "random_start": False} if name == "pgd" else {}
    with pytest.warns(UserWarning, match=r"zero gradient on 1 of 2 .*pgd with loss='margin'"):
        result = technique(name)(**settings)(model, images, 0)
    assert result.already_wrong.tolist() == [False, False, True]
    assert result.success.tolist() == [False, True, False]
    assert result.stuck.tolist() == [True, False, False]
    assert result.zero_gradients[0] == settings.get("steps", 1)
    assert result.summary()[0]["zero_gradients"] == settings.get("steps", 1)
    assert torch.equal(load_result(result.save(tmp_path)).stuck, result.stuck)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        margin = technique("pgd")(loss="margin", epsilon=0.5)(model, images, 0)
    assert margin.success.tolist() == [True, True, False]
    assert not margin.stuck.any()
