"""An ensemble is a model whose logits are the mean of its members'."""

from __future__ import annotations

import pytest
import torch
from tests.defence.conftest import Flip, Halved, Linear, Negative, linear
from torch.nn import functional

from timmscope import HookedModel, ModelError, ensemble, load_model, technique
from timmscope.draws import image_positions

A, B = (f"random:test_resnet?seed={seed}&img_size=32" for seed in (0, 1))


def test_logits_and_their_explanations_are_the_members_mean(images):
    models = [linear(0, std=(0.5,) * 3), linear(1, mean=(0.4,) * 3)]
    both = ensemble(models)
    expected = (models[0](images) + models[1](images)) / 2
    assert torch.allclose(both(images), expected, atol=1e-6)
    gradients = [m.gradient(images, "class:2")[1] for m in (both, *models)]
    assert torch.allclose(gradients[0], (gradients[1] + gradients[2]) / 2, atol=1e-6)
    weight = sum(m.module.weight.detach() / s for m, s in zip(models, (0.5, 1), strict=True)) / 2
    attacked = technique("fgsm")(epsilon=0.01)(both, images)
    margin = both(images).topk(2).indices
    if both.num_classes == 3:
        shares = both(images).softmax(1)
        direction = shares @ weight - weight[margin[:, 0]]
        sign = direction.sign().view(6, 3, 4, 4)
        assert torch.allclose(attacked.images, (images + 0.01 * sign).clamp(0, 1), atol=1e-6)


def test_each_member_has_its_own_defences(images):
    base = linear()
    both = ensemble([base.defended(Negative()), base.defended(Halved())])
    assert torch.allclose(both(images), (base(1 - images) + base(images / 2)) / 2, atol=1e-6)
    behind = both.defended(Halved())
    expected = (base(1 - images / 2) + base(images / 4)) / 2
    assert torch.allclose(behind(images), expected, atol=1e-6)


def test_random_members_draw_independently_and_per_image(images):
    base = linear()
    one = base.defended(Flip())
    both = ensemble([one, one])
    assert both.has_random_defence
    drawn = []
    for seed in range(40):
        with image_positions(range(6), seed):
            drawn.append(both(images))
    same, mirrored = base(images), base(1 - images)
    mixed = (torch.stack(drawn) - (same + mirrored) / 2).abs().amax(2) < 1e-5
    assert 0.35 < float(mixed.float().mean()) < 0.65  # 0 if both members drew the same
    with image_positions([4], 3):
        assert torch.allclose(both(images[4:5]), drawn[3][4:5], atol=1e-6)


def test_layers_of_members_are_those_of_the_models_under_a_number():
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    both, first, second = load_model(f"ensemble:{A}|({B} + jpeg)"), load_model(A), load_model(B)
    with both.record("0.layer2", "1.layer2") as together:
        both(pixels)
    with first.record("layer2") as one:
        first(pixels)
    with second.record("layer2") as other:
        second.defended("jpeg")(pixels)
    assert torch.equal(together["0.layer2"], one["layer2"])
    assert torch.equal(together["1.layer2"], other["layer2"])
    assert technique("grad-cam")(layer="1.layer2", relu=False)(both, pixels, "class:3").raw.any()


def test_members_of_another_input_size_get_scaled_images(images):
    class Small(Linear):
        def forward(self, x):
            assert x.shape[2:] == (2, 2)
            return x.flatten(1) @ self.weight[:, :12].T

    small = HookedModel(Small(), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 2, 2))
    scaled = functional.interpolate(images, (2, 2), mode="bilinear", antialias=True)
    expected = (linear()(images) + small(scaled)) / 2
    assert torch.allclose(ensemble([linear(), small])(images), expected, atol=1e-6)


def test_the_id_loads_the_same_model_again_and_a_repeated_member_is_loaded_once():
    spec = f"ensemble:{A}|({A} + timmscope:jpeg quality=50)|{B}"
    made = load_model(spec + " + timmscope:jpeg quality=90")
    assert made.id == spec + " + timmscope:jpeg quality=90"
    again = load_model(made.id)
    assert again.weights_sha256 == made.weights_sha256
    assert made.module.get_submodule("0") is made.module.get_submodule("1")
    nested = load_model(f"ensemble:(ensemble:{A}|{B})|{A}")
    assert nested.id == f"ensemble:(ensemble:{A}|{B})|{A}"


def test_a_members_defence_or_preprocessing_counts_in_the_digest():
    base = linear()
    digests = {
        ensemble(members).weights_sha256
        for members in (
            [base, base],
            [base, base.defended(Halved())],
            [base.defended(Halved()), base],
            [base, linear(0, mean=(0.5,) * 3)],
        )
    }
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: load_model("ensemble:" + A), "has 1 members: expected at least two"),
        (lambda: load_model(f"ensemble:{A}|"), "has 1 members: expected at least two"),
        (lambda: load_model("ensemble:"), "names no model"),
        (lambda: ensemble([linear()]), "an ensemble of 1 models: give at least two"),
        (
            lambda: load_model(f"ensemble:{A}|{A}&num_classes=7"),
            "need the same classes: random:test_resnet?seed=0&img_size=32 has 1000, random",
        ),
        (
            lambda: ensemble(
                [linear(class_names=["a", "b", "c"]), linear(class_names=list("abd"))]
            ),
            "class 2 of module:Linear is 'd', and 'c' before it",
        ),
        (
            lambda: load_model(f"ensemble:{A}|{A}&in_chans=1"),
            "need the same channels: random:test_resnet?seed=0&img_size=32 takes 3, random",
        ),
    ],
)
def test_members_that_do_not_fit_are_one_line(make, reason):
    with pytest.raises(ModelError) as caught:
        make()
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
