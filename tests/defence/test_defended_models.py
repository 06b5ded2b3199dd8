"""Defences act on a model's images before the normalisation, and pass gradients as they say."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tests.defence.conftest import Halved, Levels, Linear, Negative, Opaque, linear, returning

from timmscope import (
    DefenceTechnique,
    HookedModel,
    ParameterError,
    PluginError,
    TechniqueError,
    UnsupportedModel,
    load_model,
    technique,
)
from timmscope.evaluation.randomisation import cascade
from timmscope.models.loading import split_defences
from timmscope_defence import JPEG, RandomizedResize
from timmscope_registry import get_registry

RESNET = "random:test_resnet?seed=0&img_size=32"


# What the model gets


def test_images_meet_defences_in_order_before_the_normalisation(images):
    model = linear(mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    weight = model.module.weight.detach()
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.5, 1.0, 2.0)))
    for defences, seen in (
        ([Halved(), Negative()], 1 - images / 2),
        ([Negative(), Halved()], (1 - images) / 2),
        ([Levels(steps=4)], (images * 4).round() / 4),
    ):
        expected = ((seen - shift) / scale).flatten(1) @ weight.T
        assert torch.allclose(model.defended(defences)(images), expected, atol=1e-6)


def test_a_defended_model_shares_the_module_and_the_original_stays_as_it_is(model, images):
    before = model(images)
    behind = model.defended(Negative())
    assert behind.module is model.module
    assert torch.equal(model(images), before)
    assert not torch.equal(behind(images), before)
    assert torch.equal(behind.defended([])(images), before)
    assert model.defences == ()
    assert [*behind.defended([*behind.defences, Halved()]).defences] == [Negative(), Halved()]


def test_hook_points_objectives_and_explanations_see_the_network_behind_the_defence(images):
    model = load_model(RESNET, defences=[Negative()])
    bare = model.defended(())
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert list(model.layers) == list(bare.layers)
    with model.record("layer2") as one:
        model(pixels)
    with bare.record("layer2") as other:
        bare(1 - pixels)
    assert torch.equal(one["layer2"], other["layer2"])
    assert torch.equal(model.score(pixels, "class:5"), bare.score(1 - pixels, "class:5"))
    (_, gradient), (_, mirrored) = (
        model.gradient(pixels, "class:5"),
        bare.gradient(1 - pixels, "class:5"),
    )
    assert torch.allclose(gradient, -mirrored, atol=1e-7)
    cam = technique("grad-cam")(relu=False)
    maps = [cam(m, x, "class:5").raw for m, x in ((model, pixels), (bare, 1 - pixels))]
    assert torch.equal(*maps)


def test_copies_for_speed_for_other_sizes_and_for_libraries_keep_the_defences():
    model = load_model(RESNET, defences=[Negative()])
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = model(pixels)
    assert torch.allclose(model.fused()(pixels), expected, atol=1e-4)
    assert model.fused().id == model.id
    assert torch.equal(model.as_module()(pixels), expected)
    for twin in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(pixels), expected)
    vit = load_model("random:test_vit?seed=0&img_size=32&dynamic_img_size=true")
    large = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    view = vit.defended(Negative()).for_images(large)
    assert view.layers["patch_embed"].grid == (3, 3)
    assert torch.equal(view(large), vit(1 - large))
    assert torch.equal(vit.for_images(large)(large), vit(large))
    first = next(cascade(model, 1, seed=0))
    assert first.defences == model.defences
    assert first.weights_sha256 != model.weights_sha256


# Gradients


def test_an_exact_gradient_is_that_of_the_defence_and_the_model(model, images):
    weight = model.module.weight.detach()
    _, gradient = model.defended([Halved(), Negative()]).gradient(images, "class:1")
    assert torch.allclose(gradient, -weight[1].view(1, 3, 4, 4).expand(6, -1, -1, -1) / 2)


def test_a_straight_through_gradient_is_that_of_the_model_at_the_defended_image(images):
    class Square(Linear):
        def forward(self, x):
            return super().forward(x**2)

    model = HookedModel(Square(), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 4, 4))
    levels = (images * 3).round() / 3
    _, gradient = model.defended(Levels()).gradient(images, "class:1")
    expected = 2 * levels * model.module.weight.detach()[1].view(1, 3, 4, 4)
    assert torch.allclose(gradient, expected, atol=1e-6)
    assert torch.equal(model.defended(Levels())(images), model(levels))


def test_without_a_gradient_white_box_attacks_refuse_in_one_line_and_others_work(images):
    model = linear().defended(Opaque())
    for run in (
        lambda: technique("pgd")(steps=2)(model, images),
        lambda: technique("fgsm")()(model, images),
        lambda: technique("saliency")()(model, images),
        lambda: model.gradient(images, "class:1"),
    ):
        with pytest.raises(UnsupportedModel) as refused:
            run()
        assert "no gradient passes the defence Opaque steps=3: use an attack" in str(refused.value)
        assert "\n" not in str(refused.value)
    occluded = technique("occlusion")(patch_px=2, stride_px=2)(model, images, "class:1")
    assert torch.isfinite(occluded.maps).all()
    deep = load_model(RESNET, defences=[Opaque()])
    noise = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert technique("grad-cam")(relu=False)(deep, noise, "class:1").maps.any()


def test_an_attack_through_a_quantiser_needs_the_straight_through_gradient(model, images):
    """BPDA: on a linear model the sign step through the levels is that on the model."""
    behind = model.defended(Levels(steps=255))
    bare, adaptive = (technique("fgsm")(epsilon=0.05)(m, images) for m in (model, behind))
    assert torch.equal(adaptive.images, bare.images)


# What a defence returns


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (lambda x: x + 0.9, r"returned pixels from 1\.\d+ to 1\.\d+; expected a tensor \(6, 3"),
        (lambda x: x - 0.9, r"returned pixels from -0\.\d+ to "),
        (lambda x: x[:, :, 1:], r"returned images of shape \(6, 3, 3, 4\)"),
        (lambda x: x[:2], r"returned images of shape \(2, 3, 4, 4\)"),
        (lambda x: x / 0, "returned NaN or infinite pixels"),
        (lambda x: (x * 255).byte(), r"returned images of torch\.uint8"),
        (lambda x: x.numpy(), "returned an array of type float32"),
        (lambda x: None, "returned nothing"),
    ],
)  # fmt: skip
def test_what_is_no_image_in_0_to_1_is_an_error_that_names_the_defence(what, reason, model, images):
    with pytest.raises(TechniqueError, match=f"technique Returns {reason}"):
        model.defended(returning(what))(images)


def test_images_of_a_technique_outside_the_range_are_no_fault_of_the_defence(model, images):
    wide = images * 3 - 1
    assert torch.isfinite(model.defended(returning(lambda x: x))(wide)).all()
    with pytest.raises(TechniqueError, match="returned pixels"):
        model.defended(returning(lambda x: 2 * x))(wide)


def test_an_exact_defence_that_loses_the_gradient_is_an_error(model, images):
    class Lost(DefenceTechnique):
        """Detached."""

        def transform(self, images, generators):
            return images.detach() * 1

    with pytest.raises(TechniqueError, match="backward='exact' and returned images without a grad"):
        technique("fgsm")()(model.defended(Lost()), images)


def test_parameters_that_no_id_can_hold_are_refused_in_one_line(model):
    class Holds(Halved):
        """Has a function."""

        what: object = print
        """What."""

    with pytest.raises(TechniqueError, match="parameters that cannot be recorded as JSON"):
        model.defended(Holds())


def test_a_defence_works_on_a_copy(model, images):
    class InPlace(DefenceTechnique):
        """Changes its input."""

        def transform(self, images, generators):
            return images.mul_(0.5)

    before = images.clone()
    expected = model(images / 2)
    assert torch.equal(model.defended(InPlace())(images), expected)
    assert torch.equal(images, before)
    technique("fgsm")()(model.defended(InPlace()), images)
    assert torch.equal(images, before)


@pytest.mark.parametrize(("name", "value"), [("backward", "straight"), ("random", "yes")])
def test_a_class_variable_without_meaning_is_an_error_of_the_class(name, value):
    with pytest.raises(TypeError, match=f"{name} of Wrong is '{value}'"):
        type("Wrong", (Halved,), {name: value, "__module__": __name__})


# Names


def test_the_id_tells_the_defences_and_loads_the_model_again():
    model = load_model(RESNET, defences=["jpeg quality=50", RandomizedResize(smallest=0.8)])
    assert model.id == (
        f"{RESNET} + timmscope:jpeg quality=50 + timmscope:randomized-resize smallest=0.8"
    )
    again = load_model(model.id)
    assert again.defences == (JPEG(quality=50), RandomizedResize(smallest=0.8))
    assert again.id == model.id
    more = load_model(f"{RESNET} + jpeg", defences="jpeg quality=10")
    assert more.defences == (JPEG(), JPEG(quality=10))
    assert model.defended([]).id == RESNET


@pytest.mark.parametrize(
    ("spec", "name", "texts"),
    [
        ("timm:a", "timm:a", []),
        ("timm:a + jpeg", "timm:a", ["jpeg"]),
        ("timm:a + b q=5 + x:c++ k=1e-3 l=[1,2]", "timm:a", ["b q=5", "x:c++ k=1e-3 l=[1,2]"]),
        ("timm:a + d text='a b + c'", "timm:a", ["d text='a b + c'"]),
        ("timm:a + d 'text=a b'", "timm:a", ["d 'text=a b'"]),
        ("file:my + w.pth?arch=resnet18", "file:my + w.pth?arch=resnet18", []),
        ("file:my + w.pth?arch=resnet18 + jpeg", "file:my + w.pth?arch=resnet18", ["jpeg"]),
        ("random:a?input_size=3,32,32+jpeg", "random:a?input_size=3,32,32+jpeg", []),
        ("ensemble:a|(b + jpeg)", "ensemble:a|(b + jpeg)", []),
        ("ensemble:a|(b + jpeg) + jpeg", "ensemble:a|(b + jpeg)", ["jpeg"]),
    ],
)  # fmt: skip
def test_an_id_is_split_into_model_and_defences(spec, name, texts):
    assert split_defences(spec) == (name, texts)


@pytest.mark.parametrize(
    ("defences", "error", "reason"),
    [
        (["jpg"], PluginError, "unknown technique 'jpg': did you mean 'jpeg'"),
        (["pgd"], ParameterError, "pgd is of the family attack: only techniques of the base"),
        (["jpeg quality=0"], ParameterError, "'quality' of jpeg is '0': Input should be greater"),
        (["jpeg quality"], ParameterError, "'quality' after jpeg is not a parameter: write name="),
        (["jpeg strength=3"], ParameterError, "jpeg has no parameter 'strength'"),
        (["jpeg quality='5"], ParameterError, "is not a technique with parameters: No closing"),
        ([""], PluginError, "unknown technique ''"),
        ([7], ParameterError, "7 is no defence: expected a text, as in 'jpeg quality=75'"),
        ([JPEG], ParameterError, "is no defence: expected a text"),
        ([technique("fgsm")()], ParameterError, "is no defence"),
    ],
)  # fmt: skip
def test_what_is_no_defence_is_one_line(defences, error, reason, model):
    for run in (lambda: model.defended(defences), lambda: load_model(RESNET, defences=defences)):
        with pytest.raises(error) as caught:
            run()
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_plugin_with_a_broken_defence_is_named(tmp_path, model, images):
    file = tmp_path / "loud.py"
    file.write_text(
        "from timmscope import DefenceTechnique\n"
        "from timmscope_registry import TechniqueSpec, hookimpl\n"
        "class Loud(DefenceTechnique):\n"
        "    '''Louder.'''\n"
        "    def transform(self, images, generators):\n"
        "        return images * 4\n"
        "class Deaf(DefenceTechnique):\n"
        "    '''Other arguments.'''\n"
        "    def transform(self, images):\n"
        "        return images\n"
        "@hookimpl\n"
        "def timmscope_techniques():\n"
        "    for name in ('Loud', 'Deaf'):\n"
        "        yield TechniqueSpec(name=name.lower(), family='defence', summary='x',\n"
        "                            impl=f'{__name__}:{name}')\n"
    )
    get_registry().load_file(file)
    with pytest.raises(TechniqueError, match=r"technique 'loud' of .*loud.* returned pixels from"):
        model.defended(["loud"])(images)
    with pytest.raises(PluginError, match="cannot have its transform called with images, generat"):
        model.defended(["deaf"])


# The technique itself


def test_a_call_shows_what_the_defence_does_to_images_and_predictions(model, images):
    result = Negative()(model, images, labels=1)
    assert torch.allclose(result.images, 1 - images)
    assert torch.equal(result.before, model(images).argmax(1))
    assert torch.equal(result.after, model(1 - images).argmax(1))
    assert torch.allclose(result.l2, (1 - 2 * images).flatten(1).norm(dim=1), atol=1e-6)
    assert torch.allclose(result.linf, (1 - 2 * images).abs().flatten(1).amax(1), atol=1e-6)
    assert result.accuracy_after == float((model(1 - images).argmax(1) == 1).float().mean())
    assert result.agreement == float((result.before == result.after).float().mean())
    assert result.summary()[0]["label"] == "class 1"
    shares = model(1 - images).softmax(1).amax(1)
    assert torch.allclose(result.confidence_after, shares)


def test_on_a_defended_model_the_defence_comes_last(model, images):
    result = Halved()(model.defended(Negative()), images)
    assert torch.allclose(result.images, (1 - images) / 2)
    assert torch.equal(result.before, model(1 - images).argmax(1))
    assert torch.equal(result.after, model((1 - images) / 2).argmax(1))
    assert result.provenance.model == "module:Linear + Negative"
