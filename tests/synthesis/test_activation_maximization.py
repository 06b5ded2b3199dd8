"""Activation maximisation against a linear model, whose optimum is known, and on timm models."""

import pytest
import torch
from torch import nn

from timmscope import (
    HookedModel,
    ImageError,
    LayerNotFound,
    ObjectiveError,
    ParameterError,
    TechniqueError,
    channel,
    class_logit,
    load_model,
    reporting,
)
from timmscope_registry.hooks import fingerprint
from timmscope_synthesis.activation_maximization import ActivationMaximization

PLAIN = {"parameterisation": "pixel", "decorrelate": False, "robust": False}


class Linear(nn.Module):
    """Logits `weights · pixels`, `(K, 3, H, W)`."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(weights)
        self.num_classes = len(weights)

    def forward(self, x):
        return torch.einsum("bchw,kchw->bk", x, self.weights)


def linear_model(size=8, classes=2, scale=1.0):
    weights = torch.randn(classes, 3, size, size, generator=torch.Generator().manual_seed(5))
    module = Linear(weights * scale)
    return HookedModel(module, mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, size, size))


@pytest.fixture(scope="module")
def convnet():
    return load_model("random:resnet18?seed=0&img_size=64")


def test_first_pixel_step_of_a_linear_model_follows_the_weights():
    model = linear_model()
    made = ActivationMaximization(steps=1, learning_rate=0.1, **PLAIN)(model, 1, seed=4)
    # Adam's first step is learning_rate · sign(gradient), and the sigmoid is increasing.
    moved = made.images[0].logit()
    start = moved - 0.1 * model.module.weights[1].detach().sign()
    assert start.std().item() == pytest.approx(0.01, rel=0.2)
    assert start.abs().max() < 0.06
    assert torch.equal((moved - start).sign(), model.module.weights[1].sign())


def test_penalised_linear_model_ends_at_the_analytic_optimum():
    # max w·x - λ|x - ½|² has its maximum at ½ + w / (2 λ)
    model = linear_model(scale=0.1)
    made = ActivationMaximization(steps=400, learning_rate=0.03, l2_weight=1.0, **PLAIN)(model, 0)
    optimum = 0.5 + model.module.weights[0] / 2
    assert torch.allclose(made.images[0], optimum, atol=2e-3)


def test_score_of_a_linear_model_approaches_the_sum_of_positive_weights():
    model = linear_model()
    weights = model.module.weights[0]
    made = ActivationMaximization(steps=200, learning_rate=0.3, **PLAIN)(model, 0)
    assert made.final_scores[0].item() == pytest.approx(weights.clamp(min=0).sum().item(), rel=0.02)
    assert made.scores.shape == (200, 1)
    assert made.final_scores[0] > made.scores[-1, 0]


def test_variation_penalty_makes_smoother_images():
    model = linear_model()

    def roughness(**weights):
        made = ActivationMaximization(steps=40, **weights, **PLAIN)(model, 0)
        return made.images.diff(dim=3).square().mean().item()

    assert roughness(tv_weight=1000.0) < 0.2 * roughness()


def test_returned_image_is_the_best_of_those_looked_at(convnet):
    technique = ActivationMaximization(steps=40)
    made = technique(convnet, channel("layer2", 3), seed=2)
    assert made.best_step[0] in (15, 31, 39)
    final = [
        ActivationMaximization(steps=steps)(convnet, channel("layer2", 3), seed=2).final_scores[0]
        for steps in (16, 32, 40)
    ]
    # A shorter run is the beginning of a longer one, so its best can only be as good.
    assert final[0] <= final[1] <= final[2]
    assert made.final_scores[0] == final[2]


def test_same_seed_gives_the_same_bits_and_another_seed_others(convnet):
    technique = ActivationMaximization(steps=4)
    first, again = (technique(convnet, 3, seed=1).images for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, technique(convnet, 3, seed=2).images)


def test_image_does_not_depend_on_how_many_others_are_made(convnet):
    alone = ActivationMaximization(steps=6)(convnet, 3).images
    three = ActivationMaximization(steps=6, count=3)(convnet, 3).images
    assert torch.equal(three[:1], alone)
    assert not torch.equal(three[0], three[1])
    together = ActivationMaximization(steps=6, count=3, batch_size=3)(convnet, 3).images
    # Together the sums inside convolutions may be ordered otherwise; Adam magnifies the rounding.
    assert (together - three).abs().mean() < 1e-3


def test_several_targets_make_an_image_each(convnet):
    several = ActivationMaximization(steps=4)(convnet, "class:3|7|3")
    assert len(several.images) == 3
    assert several.labels[0] == several.labels[2] != several.labels[1]
    alone = ActivationMaximization(steps=4)(convnet, 3)
    assert torch.equal(several.images[:1], alone.images)
    with torch.no_grad():
        logits = convnet(several.images)
    assert torch.allclose(
        several.final_scores, torch.stack([logits[0, 3], logits[1, 7], logits[2, 3]]), atol=1e-4
    )


def test_several_images_per_target_are_named_by_their_target(convnet):
    several = ActivationMaximization(steps=4, count=2)(convnet, "class:3|7")
    assert several.targets.tolist() == [0, 0, 1, 1]
    assert several.labels == [convnet.class_name(index) for index in (3, 3, 7, 7)]
    assert len({image.numpy().tobytes() for image in several.images}) == 4
    alone = ActivationMaximization(steps=4, count=2)(convnet, 3)
    assert torch.equal(several.images[:2], alone.images)
    assert alone.targets.tolist() == [0, 0]
    with torch.no_grad():
        logits = convnet(several.images)
    expected = [logits[0, 3], logits[1, 3], logits[2, 7], logits[3, 7]]
    assert torch.allclose(several.final_scores, torch.stack(expected), atol=1e-4)


def test_initial_image_is_where_the_ascent_starts(convnet):
    photo = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    made = ActivationMaximization(steps=1, learning_rate=1e-6, robust=False)(convnet, 3, init=photo)
    # Fourier noise of deviation 0.01 is added, and nothing else
    assert (made.images - photo).abs().max() < 0.2
    assert (made.images - photo).abs().mean() < 0.03
    made = ActivationMaximization(steps=1, learning_rate=1e-6, count=2, size=48)(
        convnet, 3, init=photo
    )
    assert made.images.shape == (2, 3, 48, 48)
    made = ActivationMaximization(steps=1, learning_rate=1e-6)(convnet, "class:1|2", init=photo)
    assert made.images.shape == (2, 3, 64, 64)
    assert (made.images - photo).abs().mean() < 0.03


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("vit_tiny_patch16_224?img_size=64", "blocks.3[5]"),
        ("swin_tiny_patch4_window7_224?img_size=56&window_size=7", "layers.1[5]"),
        ("convnext_atto?img_size=64", "stages.1[5]"),
        ("resnet18?img_size=64", "layer1[2,centre]"),
        ("resnet18?img_size=64", "layer3"),
        ("resnet18?img_size=64", "layer2[1] - 0.5*layer2[2]"),
        ("vit_tiny_patch16_224?img_size=64", "class:7"),
    ],
)
def test_objective_rises_three_deviations_above_that_of_noise_on(name, objective):
    model = load_model(f"random:{name}")
    made = ActivationMaximization(steps=64)(model, objective)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(16, 3, *model.input_size[1:], generator=generator)
    scores = model.score(noise, objective)
    assert made.final_scores[0] > scores.mean() + 3 * scores.std()
    assert made.final_scores[0] > scores.max()


def test_dead_unit_is_an_error_that_names_it_and_the_way_out():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    module(torch.zeros(1, 3, 12, 12))
    with torch.no_grad():
        module[0].bias.fill_(-100)
    model = HookedModel(module, mean=(0,) * 3, std=(1,) * 3, input_size=(3, 12, 12))
    with pytest.raises(TechniqueError, match=r"zero for image 0, 1 .* layer before the activation"):
        ActivationMaximization(steps=20, count=2, batch_size=2)(model, "1[2]")
    assert ActivationMaximization(steps=2)(model, "0[2]").scores[1, 0] != -100


@pytest.mark.parametrize("parameters", [{"steps": 0}, {"count": 0}, {"size": 0}, {"scale": 1.0}])
def test_senseless_parameter_is_refused(parameters):
    with pytest.raises(ParameterError, match=next(iter(parameters))):
        ActivationMaximization(**parameters)


def test_size_that_the_model_refuses_is_one_clear_line():
    model = load_model("random:vit_tiny_patch16_224?img_size=32")
    with pytest.raises(ParameterError, match=r"40×40 px .* leave size unset .*32×32") as caught:
        ActivationMaximization(size=40, steps=1)(model, 3)
    assert "\n" not in str(caught.value)


def test_counts_that_contradict_each_other_are_refused(convnet):
    with pytest.raises(ParameterError, match="3 count, 2 initial images"):
        ActivationMaximization(count=3, steps=1)(convnet, 1, init=torch.zeros(2, 3, 64, 64))
    with pytest.raises(ObjectiveError, match="3 target classes for 2 image"):
        ActivationMaximization(steps=1)(convnet, "class:1|2|3", init=torch.zeros(2, 3, 64, 64))


def test_unknown_layer_unit_class_and_prediction_of_nothing_are_refused(convnet):
    technique = ActivationMaximization(steps=1)
    with pytest.raises(LayerNotFound):
        technique(convnet, "layer9[3]")
    for objective in ("layer1[64]", "class:1000", "top"):
        with pytest.raises(ObjectiveError):
            technique(convnet, objective)
    with pytest.raises(ImageError):
        technique(convnet, 3, init=torch.full((1, 3, 64, 64), 2.0))


class Stopped(Exception):
    pass


class StopsAt:
    """A progress reporter that fails at a step, in the middle of a run."""

    def __init__(self, step):
        self.step = step

    def open(self, description, total):
        from contextlib import contextmanager

        @contextmanager
        def opened():
            def advance(steps):
                self.step -= steps
                if self.step <= 0:
                    raise Stopped

            yield advance

        return opened()


def test_model_and_surroundings_are_as_before_after_success_and_failure():
    module = load_model("random:resnet18?img_size=32").module
    module.train().requires_grad_(True)
    model = HookedModel(module, input_size=(3, 32, 32))
    before = fingerprint(module)
    ActivationMaximization(steps=2)(model, class_logit(1))
    assert fingerprint(module).difference(before) == []
    with reporting(StopsAt(2)), pytest.raises(Stopped):
        ActivationMaximization(steps=5)(model, class_logit(1))
    assert fingerprint(module).difference(before) == []


def test_runs_where_the_caller_has_autograd_off(convnet):
    plain = ActivationMaximization(steps=2)(convnet, 3).images
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert torch.equal(ActivationMaximization(steps=2)(convnet, 3).images, plain)


def test_frames_are_the_images_of_shorter_searches():
    model = linear_model()
    made = ActivationMaximization(steps=9, count=2, frames=3, **PLAIN)(model, 1)
    assert made.frames.shape == (3, 2, 3, 8, 8)
    for frame, steps in zip(made.frames, (1, 5, 9), strict=True):
        shorter = ActivationMaximization(steps=steps, count=2, **PLAIN)(model, 1)
        assert shorter.frames is None
        assert torch.equal(frame, (shorter.images * 255).round().to(torch.uint8))
