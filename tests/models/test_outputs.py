"""Outputs that are not (B, K), and modules that return several tensors, are reached by name."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from timmscope import (
    HookedModel,
    LayerNotFound,
    ObjectiveError,
    UnsupportedModel,
    class_logit,
    load_model,
    parse_objective,
    technique,
)

PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1), "input_size": (3, 16, 16)}
NAMES = ["road", "sky", "car", "tree", "wall"]


class Two(nn.Module):
    """Two maps of different sizes, as a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 2, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fine(x), self.coarse(x)


class Detector(nn.Module):
    """A dictionary with nested outputs, behind a stage that returns two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stage, self.head = Two(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> dict[str, object]:
        fine, coarse = self.stage(x)
        up = functional.interpolate(coarse.tanh(), scale_factor=2.0)
        scores = self.head(coarse.tanh().mean((2, 3)))
        return {"masks": fine.tanh() + up[:, :4], "levels": [scores, coarse], "count": 3}


@pytest.fixture
def detector() -> HookedModel:
    torch.manual_seed(1)
    return HookedModel(Detector(), **PLAIN, id="mine:detector")


@pytest.fixture
def segmenter() -> HookedModel:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1))
    return HookedModel(net, **PLAIN, class_names=NAMES, id="mine:segmenter")


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_every_tensor_of_a_nested_output_is_a_layer(detector):
    assert {name: layer.shape for name, layer in detector.layers.items() if "[" in name} == {
        "stage[0]": (4, 16, 16),
        "stage[1]": (6, 8, 8),
        "out[masks]": (4, 16, 16),
        "out[levels][0]": (5,),
        "out[levels][1]": (6, 8, 8),
    }
    assert detector.layers["logits[levels][0]"].name == "out[levels][0]"
    assert detector.layers["stage#0[1]"].name == "stage[1]"


def test_units_of_such_layers_have_the_values_that_the_module_returns(detector, images):
    with torch.no_grad():
        out, stage = detector.module(images), detector.module.stage(images)
    for text, expected in {
        "out[levels][0][3]": out["levels"][0][:, 3],
        "out[masks][2,5,7]": out["masks"][:, 2, 5, 7],
        "out[masks][2,centre]": out["masks"][:, 2, 8, 8],
        "stage[1][4] - stage[0][1]": stage[1][:, 4].mean((1, 2)) - stage[0][:, 1].mean((1, 2)),
        '"out[levels][1]"': out["levels"][1].square().mean((1, 2, 3)),
        "out[levels][1]": out["levels"][1].square().mean((1, 2, 3)),
        "stage[1]@[1, 0, 0, 0, 0, 2]": (stage[1][:, 0] + 2 * stage[1][:, 5]).mean((1, 2)),
    }.items():
        score = detector.score(images, text)
        assert torch.allclose(score, expected, atol=1e-6), text
        assert str(parse_objective(text)) == text


def test_the_gradient_of_such_a_unit_equals_autograds(detector, images):
    leaf = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(detector.module(leaf)["levels"][0][:, 3].sum(), leaf)
    _, gradient = detector.gradient(images, "out[levels][0][3]")
    assert torch.allclose(gradient, expected, atol=1e-7)
    coarse = detector.module.stage(images)[1].detach().requires_grad_()
    score = detector.module.head(coarse.tanh().mean((2, 3)))[:, 3]
    (expected,) = torch.autograd.grad(score.sum(), coarse)
    _, activation, gradient = detector.layer_gradient(images, "out[levels][0][3]", "stage[1]")
    assert torch.allclose(activation, coarse.detach(), atol=1e-6)
    assert torch.allclose(gradient, expected, atol=1e-7)


def test_editing_one_tensor_leaves_the_others(detector, images):
    with torch.no_grad():
        plain = detector.module(images)
    points = ("out[masks]", "out[levels][0]", "stage[0]")
    with detector.edit({"stage[1]": torch.zeros_like}), detector.record(*points) as seen:
        assert detector(images).shape == (2, 0)
    assert torch.equal(seen["out[masks]"], seen["stage[0]"].tanh())
    assert torch.equal(seen["out[levels][0]"], detector.module.head.bias.expand(2, -1))
    assert plain["masks"].shape == seen["out[masks]"].shape


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("saliency", "out[levels][0][3]"),
        ("grad-cam", "out[masks][2,5,7]"),
        ("occlusion", "out[masks][1]"),
    ],
)
def test_techniques_explain_such_outputs(detector, images, name, objective):
    parameters = {"layer": "stage[1]", "relu": False} if name == "grad-cam" else {}
    result = technique(name)(**parameters)(detector, images, objective)
    assert torch.allclose(result.scores, detector.score(images, objective).detach(), atol=1e-6)


def test_grad_cam_at_one_of_several_tensors_is_its_formula(detector, images):
    made = technique("grad-cam")(layer="stage[1]", relu=False)(
        detector, images, "out[levels][0][3]"
    )
    coarse = detector.module.stage(images)[1].detach().requires_grad_()
    score = detector.module.head(coarse.tanh().mean((2, 3)))[:, 3]
    (slopes,) = torch.autograd.grad(score.sum(), coarse)
    expected = (slopes.mean((2, 3), keepdim=True) * coarse).sum(1).detach()
    assert torch.allclose(made.raw, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (
            lambda m, x: m(x),
            UnsupportedModel,
            r"returns a dict of \[masks\] \(2, 4, 16, 16\), .*as in out\[masks\]\[3\]",
        ),
        (
            lambda m, x: m.score(x, "class:3"),
            ObjectiveError,
            r"has no logits \(B, K\): .*a dict of out\[masks\], ",
        ),
        (lambda m, x: m.score(x, "top"), ObjectiveError, r"as in out\[0\]\[3\]"),
        (
            lambda m, x: m.score(x, "stage[2][0]"),
            LayerNotFound,
            r"no layer is called 'stage\[2\]'; nearest: stage\[",
        ),
        (
            lambda m, x: m.record("stage"),
            UnsupportedModel,
            r"a tuple of stage\[0\], stage\[1\].*name one of them",
        ),
        (
            lambda m, x: m.record("stage[7]"),
            LayerNotFound,
            r"stage\[0\], stage\[1\]: there is no stage\[7\]",
        ),
        (
            lambda m, x: m.record("head[0]"),
            LayerNotFound,
            r"head returns one tensor, so there is no head\[0\]",
        ),
        (lambda m, x: technique("pgd")()(m, x), ObjectiveError, "has no classes"),
    ],
)
def test_a_question_without_an_answer_is_one_typed_line(detector, images, ask, error, message):
    with pytest.raises(error, match=message) as caught:
        ask(detector, images)
    assert "\n" not in str(caught.value)


def test_a_dense_output_has_classes_at_places(segmenter, images):
    with torch.no_grad():
        dense = segmenter.module(images)
    assert segmenter.num_classes == 5
    for objective, expected in {
        "class:3@12,4": dense[:, 3, 12, 4],
        "class:car@0,15": dense[:, 2, 0, 15],
        class_logit("car", 0, 15): dense[:, 2, 0, 15],
        "logits[3]": dense[:, 3].mean((1, 2)),
        "2*class:car@1,2 - class:sky@1,2": 2 * dense[:, 2, 1, 2] - dense[:, 1, 1, 2],
    }.items():
        assert torch.allclose(segmenter.score(images, objective), expected, atol=1e-6), objective
    result = technique("saliency")()(segmenter, images, "class:car@3,9")
    assert (result.maps > 0).nonzero()[:, 1:].aminmax(dim=0).max.tolist() == [4, 10]  # 3×3 pixels
    assert result.objective == "logits[2,3,9]"


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda m, x: m(x),
            r"returns a tensor of shape \(2, 5, 16, 16\); expected logits \(B, K\)",
        ),
        (lambda m, x: m.score(x, "class:3"), "name a place, as in class:3@y,x, or take the mean"),
        (lambda m, x: m.score(x, "top"), "name a place"),
        (
            lambda m, x: m.score(x, "class:3@16,0"),
            r"grid of 16×16 cells, there is no cell \(16, 0\)",
        ),
        (lambda m, x: m.score(x, "class:9@1,1"), "classes 0 to 4"),
        (lambda m, x: technique("pgd")()(m, x), r"expected logits \(B, K\)"),
    ],
)
def test_a_dense_output_without_a_place_is_refused_with_a_remedy(segmenter, images, ask, message):
    with pytest.raises((ObjectiveError, UnsupportedModel), match=message):
        ask(segmenter, images)


def test_a_place_of_a_classifier_is_refused(lite0, photos):
    with pytest.raises(ObjectiveError, match="a class has one logit and no place: use class:3"):
        lite0.score(photos, "class:3@1,1")


@pytest.mark.parametrize(
    "spec", ["random:hrnet_w18_small?img_size=64", "random:selecsls42b?img_size=64"]
)
def test_features_that_timm_names_are_reached_in_models_with_several_tensors(spec):
    import timm

    model = load_model(spec)
    image = torch.rand(1, 3, 64, 64)
    arch = spec.partition(":")[2].partition("?")[0]
    features = timm.create_model(arch, features_only=True).eval()
    named = model.module.state_dict()
    flat = {re.sub(r"^(stem|features|head)\.", r"\1_", name): named[name] for name in named}
    missing, _ = features.load_state_dict({**named, **flat}, strict=False)
    assert not missing
    with torch.no_grad():
        wanted = features(model.preprocessing.normalise(image))
        with model.record(*model.layers, until_last=False) as seen:
            model(image)
    ours = [value for value in seen.values() if value.ndim == 4]
    for feature in wanted:
        assert any(v.shape == feature.shape and torch.allclose(v, feature, atol=1e-5) for v in ours)
