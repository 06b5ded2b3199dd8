"""Neural style: losses by hand, gradients by differences, and style that really arrives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from timmscope import LayerNotFound, ParameterError, UnsupportedModel, load_model, technique
from timmscope_registry.hooks import fingerprint
from timmscope_style.default_layers import content_layers, style_layers
from timmscope_style.gram import gram, relative_error, total_variation
from timmscope_style.neural_style import NeuralStyle


@pytest.fixture(scope="module")
def resnet():
    return load_model("random:resnet18?seed=0&img_size=64")


@pytest.fixture(scope="module")
def small(photos) -> Tensor:
    """Cat, coffee and astronaut at 64 px."""
    return torch.nn.functional.interpolate(photos, (64, 64), mode="area")


def test_the_gram_matrix_by_hand():
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]])  # (1, 2, 1, 2)
    # 1·1 + 2·2 = 5, 1·3 + 2·(−1) = 1, 3·3 + 1·1 = 10, each over 2 positions
    assert torch.equal(gram(features), torch.tensor([[[2.5, 0.5], [0.5, 5.0]]]))


def test_the_gram_matrix_ignores_where_things_are():
    features = torch.randn(1, 5, 4, 6)
    shuffled = features.flatten(2)[:, :, torch.randperm(24)].view(1, 5, 6, 4)
    assert torch.allclose(gram(features), gram(shuffled), atol=1e-6)


def test_losses_by_hand():
    assert relative_error(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 1.0])) == 1  # (1 + 4) / 5
    picture = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])
    # down: 0.25 and 0.25, mean 0.25; across: 1 and 0, mean 0.5
    assert total_variation(picture) == 0.75


def test_style_loss_is_zero_where_the_image_is_the_style(resnet, small):
    result = NeuralStyle(init="style", steps=1)(resnet, None, small[:1].clamp(0.05, 0.95))
    assert result.loss_curves()["style"][0] < 1e-6


def test_content_loss_is_zero_where_the_image_is_the_content(resnet, small):
    picture = small[:1].clamp(0.05, 0.95)
    result = NeuralStyle(steps=1)(resnet, picture, small[1:2])
    assert result.loss_curves()["content"][0] < 1e-6


def test_losses_equal_a_slow_version(resnet, small):
    cat, coffee, astronaut = (small[row : row + 1].clamp(0.05, 0.95) for row in range(3))
    layers = ("layer1", "layer3")
    result = NeuralStyle(
        style_layers=layers,
        content_layers=("layer2",),
        layer_weights=(3, 1),
        content_weight=2,
        style_weight=5,
        tv_weight=7,
        init="content",
        steps=1,
    )(resnet, cat, [coffee, astronaut], weights=[1, 3])

    def features(image: Tensor, layer: str) -> np.ndarray:
        seen = {}
        module = resnet.module.get_submodule(layer)
        handle = module.register_forward_hook(lambda _, __, out: seen.update(out=out.clone()))
        mean, std = (torch.tensor(v)[:, None, None] for v in (resnet.mean, resnet.std))
        with torch.no_grad():
            resnet.module((image - mean) / std)
        handle.remove()
        return seen["out"][0].double().numpy()

    def slow_gram(image: Tensor, layer: str) -> np.ndarray:
        values = features(image, layer).reshape(resnet.layers[layer].channels, -1)
        return np.einsum("ip,jp->ij", values, values) / values.shape[1]

    style = 0.0
    for layer, share in zip(layers, (0.75, 0.25), strict=True):
        goal = 0.25 * slow_gram(coffee, layer) + 0.75 * slow_gram(astronaut, layer)
        error = ((slow_gram(cat, layer) - goal) ** 2).sum() / (goal**2).sum()
        assert result.loss_curves()[f"style {layer}"][0] == pytest.approx(error, rel=1e-4)
        style += share * error
    curves = result.loss_curves()
    assert curves["style"][0] == pytest.approx(style, rel=1e-4)
    assert curves["content"][0] < 1e-6
    rough = float(total_variation(cat))
    assert curves["total"][0] == pytest.approx(5 * style + 7 * rough, rel=1e-4)


def test_a_texture_of_two_styles_lies_between_them(resnet, small):
    one, two = small[:1].clamp(0.05, 0.95), small[1:2].clamp(0.05, 0.95)
    losses = [
        float(
            NeuralStyle(init="style", steps=1)(
                resnet, None, [one, two], weights=[share, 1 - share]
            ).loss_curves()["style"][0]
        )
        for share in (1.0, 0.6, 0.2)
    ]
    assert losses == sorted(losses)
    assert losses[0] < 1e-6 < losses[1]


@pytest.mark.parametrize(
    ("optimizer", "times"),
    [
        pytest.param("lbfgs", 50, marks=pytest.mark.slow),
        pytest.param("adam", 50, marks=pytest.mark.soak),
    ],
)
def test_150_steps_bring_the_style_loss_down_fifty_times_from_noise(
    lite0, photo_paths, optimizer, times
):
    style = lite0.images(photo_paths["chelsea"].with_name("ihc.png"))
    result = NeuralStyle(init="noise", optimizer=optimizer, size=160)(lite0, None, style)
    course = result.loss_curves()["style"]
    assert len(course) == 151
    assert course[0] / course[-1] >= times


def test_style_arrives_and_content_stays(lite0, photos, photo_paths):
    style = lite0.images(photo_paths["chelsea"].with_name("ihc.png"))
    result = NeuralStyle(steps=60, size=128)(lite0, photos[:1], style)
    curves = result.loss_curves()
    assert curves["style"][-1] < curves["style"][0] / 5
    # An unrelated picture's content is about 1.5 to 2 away.
    assert curves["content"][-1] < 1.1


@pytest.mark.parametrize(
    "spec",
    [
        "random:vgg11?img_size=64",
        "random:vit_tiny_patch16_224?img_size=64",
        "random:swin_tiny_patch4_window7_224",
        "random:mambaout_femto?img_size=64",
        "random:convnext_atto?img_size=64",
    ],
)
def test_every_layout_serves_as_an_encoder(spec, photos):
    model = load_model(spec)
    pictures = torch.nn.functional.interpolate(photos, model.input_size[1:], mode="area")
    before = fingerprint(model.module)
    result = NeuralStyle(init="noise", steps=12)(model, None, pictures[1:2])
    course = result.loss_curves()["style"]
    assert course[-1] < 0.8 * course[0]
    assert fingerprint(model.module).difference(before) == []


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_memory_layout_of_the_content_makes_no_difference(resnet, small, optimizer):
    # A picture read from a file comes with its channels last.
    last = small[:1].contiguous(memory_format=torch.channels_last)
    run = NeuralStyle(optimizer=optimizer, steps=4)
    plain, other = (run(resnet, content, small[1:2]).images for content in (small[:1], last))
    assert torch.allclose(plain, other, atol=1e-3)


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_last_losses_are_those_of_the_returned_image(resnet, small, optimizer):
    content, style = small[:1], small[1:2]
    made = NeuralStyle(optimizer=optimizer, steps=7)(resnet, content, style)
    goal = made.loss_curves()
    for name in ("act1", "layer1", "layer2", "layer3"):
        grams = []
        for picture in (made.images, style):
            with resnet.record(name) as seen, torch.no_grad():
                resnet(picture)
            grams.append(gram(seen[name]))
        assert goal[f"style {name}"][-1] == pytest.approx(relative_error(*grams).item(), rel=1e-4)
    assert made.summary()[0]["steps"] == 7


def test_default_layers_go_from_fine_to_coarse(lite0):
    assert style_layers(lite0) == ("bn1.act", "blocks.0", "blocks.1", "blocks.2", "blocks.4")
    assert content_layers(lite0) == ("blocks.2",)
    vit = load_model("random:vit_tiny_patch16_224?img_size=64")
    assert len(style_layers(vit)) == 5
    convnext = load_model("random:convnext_atto?img_size=64")
    assert style_layers(convnext) == ("stem.1", "stages.0", "stages.1", "stages.2")
    resnet = load_model("random:resnet18?img_size=64")
    assert style_layers(resnet) == ("act1", "layer1", "layer2", "layer3")


def test_the_seed_decides_and_callers_may_be_in_inference_mode(resnet, small):
    run = NeuralStyle(init="noise", steps=3)
    first = run(resnet, None, small[:1], seed=1).images
    with torch.inference_mode():
        again = run(resnet, None, small[:1].clone(), seed=1).images
    assert torch.equal(first, again)
    assert not torch.equal(first, run(resnet, None, small[:1], seed=2).images)


def test_the_model_is_as_it_was_after_a_failure_in_mid_run(small):
    model = load_model("random:resnet18?seed=1&img_size=64")
    calls = iter(range(100))
    layer3 = model.module.layer3
    original = layer3.forward

    def failing(x):
        if next(calls) > 4:
            raise ValueError("in the middle")
        return original(x)

    layer3.forward = failing
    before = fingerprint(model.module)
    with pytest.raises(ValueError, match="in the middle"):
        NeuralStyle(steps=9)(model, small[:1], small[1:2])
    assert fingerprint(model.module).difference(before) == []


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"steps": 0}, ParameterError, "'steps'"),
        ({"style_weight": -1}, ParameterError, "'style_weight'"),
        ({"optimizer": "sgd"}, ParameterError, "'adam' or 'lbfgs'"),
        ({"style_layers": ("layer9",)}, LayerNotFound, "layer9"),
        ({"style_layers": ("fc",)}, ParameterError, "has no grid"),
        ({"layer_weights": (1, 2)}, ParameterError, "give one each"),
    ],
)
def test_wrong_parameters_are_one_clear_line(resnet, small, parameters, error, message):
    with pytest.raises(error, match=message) as caught:
        NeuralStyle(**parameters)(resnet, small[:1], small[1:2])
    assert "\n" not in str(caught.value)


def test_wrong_inputs_are_one_clear_line(resnet, small):
    run = NeuralStyle(steps=1)
    with pytest.raises(ParameterError, match="at least one style image"):
        run(resnet, small[:1], [])
    with pytest.raises(ParameterError, match="one content image, not 2"):
        run(resnet, small[:2], small[:1])
    with pytest.raises(ParameterError, match="2 weights for 1 style"):
        run(resnet, small[:1], small[1:2], weights=[1, 2])
    with pytest.raises(ParameterError, match="there is no content image"):
        NeuralStyle(init="content")(resnet, None, small[:1])
    vit = load_model("random:vit_tiny_patch16_224?img_size=64")
    with pytest.raises(UnsupportedModel, match="does not take images of 80×80 px"):
        NeuralStyle(size=80, steps=1)(vit, small[:1], small[1:2])


def test_it_runs_by_name_and_saves_pictures(resnet, small, tmp_path):
    result = technique("neural-style")(steps=2)(resnet, small[:1], small[1:2])
    result.save(tmp_path)
    assert (tmp_path / "image-000.png").exists()
    assert (tmp_path / "figure.png").exists()


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_frames_go_from_the_start_to_the_result(resnet, small, optimizer):
    cat, coffee = small[:1].clamp(0.05, 0.95), small[1:2]
    made = NeuralStyle(steps=6, frames=4, optimizer=optimizer)(resnet, cat, coffee)
    plain = NeuralStyle(steps=6, optimizer=optimizer)(resnet, cat, coffee)
    assert made.frames.shape == (4, 1, 3, 64, 64)
    levels = made.frames.float() / 255
    assert (levels[0] - cat).abs().max() <= 0.5 / 255 + 1e-4
    assert (levels[-1] - made.images).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(made.images, plain.images)
    assert plain.frames is None
