"""Trainings compute what they say, leave the model alone, and refuse wrong use in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.training.conftest import Plain, forward, pixels, small
from torch import nn
from torch.nn import functional

from timmscope import (
    HookedModel,
    ImageError,
    ParameterError,
    TechniqueError,
    TrainingTechnique,
    UnsupportedModel,
    load_result,
)
from timmscope_registry.hooks import fingerprint


class Linear(nn.Module):
    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(192, 3).double()
        nn.init.constant_(self.fc.weight, 0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x):
        return self.fc(x.flatten(1))


def linear() -> HookedModel:
    return HookedModel(Linear(), mean=(0.2,) * 3, std=(2,) * 3, input_size=(3, 8, 8), crop_pct=1.0)


def test_steps_on_a_linear_model_are_those_of_gradient_descent_by_hand(photos, tmp_path):
    """With one batch of all images, momentum and weight decay, in NumPy."""
    images, labels = pixels(40)
    training = Plain(
        epochs=4, batch_size=40, optimizer="sgd", momentum=0.5, weight_decay=0.1, learning_rate=0.3,
        schedule="linear",
    )  # fmt: skip
    out = tmp_path / "out"
    result = training(linear(), photos, held_out=photos, output=out)

    inputs = (images.transpose(0, 3, 1, 2).reshape(40, -1) / 255 - 0.2) / 2
    weight, bias = np.full((3, 192), 0.01), np.zeros(3)
    speed = [np.zeros_like(weight), np.zeros_like(bias)]
    onehot, losses = np.eye(3)[labels], []
    for step in range(5):
        logits = inputs @ weight.T + bias
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        losses.append(-np.log(p[np.arange(40), labels]).mean())
        if step < 4:
            error = (p - onehot) / 40
            gradients = [error.T @ inputs + 0.1 * weight, error.sum(0) + 0.1 * bias]
            speed = [0.5 * v + g for v, g in zip(speed, gradients, strict=True)]
            rate = 0.3 * (1 - step / 4)
            weight, bias = weight - rate * speed[0], bias - rate * speed[1]

    trained = result.model(linear(), technique=training)
    np.testing.assert_allclose(trained.module.fc.weight.numpy(), weight, atol=1e-7)
    np.testing.assert_allclose(trained.module.fc.bias.numpy(), bias, atol=1e-7)
    assert result.losses[:, 0].tolist() == pytest.approx(losses[:4], abs=1e-6)
    assert result.held_out == {"loss": pytest.approx(losses[4], abs=1e-6)}
    assert result.rates.tolist() == pytest.approx([0.3, 0.225, 0.15, 0.075])


def test_the_learning_rate_warms_up_and_falls_along_a_cosine(photos, tmp_path):
    training = Plain(epochs=2, batch_size=4, learning_rate=0.8, warmup=0.25, schedule="cosine")
    rates = training(small(), photos, output=tmp_path / "out").rates
    assert rates[:4].tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4:].tolist() == pytest.approx(
        [0.4 * (1 + np.cos(np.pi * t / 12)) for t in range(12)]
    )


def test_the_curve_of_a_long_training_has_the_means_of_windows(photos, tmp_path, monkeypatch):
    whole = Plain(epochs=2, batch_size=4)(small(), photos, output=tmp_path / "whole")
    monkeypatch.setattr("timmscope.techniques.training.loop.POINTS", 4)
    few = Plain(epochs=2, batch_size=4)(small(), photos, output=tmp_path / "few")
    assert few.steps.tolist() == [4, 8, 12, 16]
    torch.testing.assert_close(few.losses, whole.losses.reshape(4, 4, 1).mean(1))


def test_the_models_own_weights_modes_and_gradients_never_change(photos, tmp_path, model):
    model.module.train()
    before = fingerprint(model.module)
    result = Plain()(model, photos, output=tmp_path / "out")
    assert not fingerprint(model.module).difference(before)
    trained = result.model(model, technique=Plain())
    assert (forward(trained) - forward(model)).abs().max() > 0.01


class TrainsTheOriginal(Plain):
    def build(self, model):
        return model.module.train().requires_grad_(True)


class TiesOneWeight(Plain):
    def build(self, model):
        network = model.trainable_copy()
        network[-1].weight = model.module[-1].weight
        return network


@pytest.mark.parametrize("training", [TrainsTheOriginal(), TiesOneWeight()])
@pytest.mark.filterwarnings("ignore")
def test_a_network_that_shares_weights_with_the_model_is_refused(photos, tmp_path, model, training):
    before = [weight.clone() for weight in model.module.parameters()]
    with pytest.raises(TechniqueError, match="shares weights with the model; expected a copy"):
        training(model, photos, output=tmp_path / "out")
    assert all(map(torch.equal, before, model.module.parameters()))


class Returns(Plain):
    what: str

    def loss(self, network, batch, progress):
        total = functional.cross_entropy(network(batch.images), batch.labels)
        return {
            "a tensor": total,
            "no total": {"loss": total},
            "a vector": {"total": total.expand(3)},
            "no gradient": {"total": total.detach()},
            "new terms": {"total": total, f"at {progress.step}": total},
        }[self.what]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("a tensor", "expected a dictionary of scalars by name, with 'total'"),
        ("no total", r"returned a loss of \['loss'\]"),
        ("a vector", r"returned 'total' of shape \(3,\)"),
        ("no gradient", "a total that does not depend on the network's weights"),
        ("new terms", r"returned the terms total, at 1 at step 2; expected total, at 0 as before"),
    ],
)
def test_a_loss_of_another_form_is_refused_in_one_line(photos, tmp_path, what, message):
    with pytest.raises(TechniqueError, match=message) as caught:
        Returns(what=what)(small(), photos, output=tmp_path / "out")
    assert "\n" not in str(caught.value)


class Collapses(Plain):
    """A guard that rises for three epochs and then falls."""

    def guard(self, network, batch):
        self.__dict__.setdefault("asked", []).append(None)
        return [0.2, 0.5, 0.45, 0.3, 0.9][len(self.asked) - 1]


def test_a_guard_that_falls_ends_the_training_with_the_weights_of_the_epoch_before(
    photos, tmp_path
):
    collapsed = Collapses(epochs=5)(small(), photos, output=tmp_path / "out")
    assert collapsed.steps[-1] == 16  # 4 epochs of 4 steps
    assert "fell from 0.5 to 0.3 in epoch 4" in collapsed.card["stopped"]
    assert "the weights are those of epoch 3" in collapsed.summary()[0]["stopped"]
    three = Plain(epochs=3)(small(), photos, output=tmp_path / "three")
    expected = three.model(small(), technique=Plain())
    assert torch.equal(forward(collapsed.model(small(), technique=Collapses())), forward(expected))


class Greys(Plain):
    def preview(self, network, batch):
        return {
            "images": batch.images,
            "grey": batch.images.mean(1, keepdim=True).expand(-1, 3, -1, -1),
        }


def test_previews_are_written_every_n_steps_and_kept_in_the_result(photos, tmp_path):
    result = Greys()(small(), photos, output=tmp_path / "out", preview=5)
    written = sorted((tmp_path / "out" / "previews").iterdir())
    assert [file.name for file in written] == ["step-00000005.png", "step-00000010.png"]
    assert Image.open(written[0]).width > 300
    assert result.previews.shape == (2, 8, 3, 8, 8)
    again = load_result(result.save(tmp_path / "result"))
    assert torch.equal(again.previews, result.previews)
    assert again.preview_names == ["images", "grey"]
    assert (tmp_path / "result" / "preview-1.png").stat().st_size > 0


def test_a_technique_without_previews_says_so(photos, tmp_path):
    with pytest.raises(ParameterError, match="makes no previews"):
        Plain()(small(), photos, output=tmp_path / "out", preview=5)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"checkpoint_every": 0}, "checkpoint_every is 0: expected an int, 1 or more"),
        ({"preview": -1}, "preview is -1"),
        ({"workers": -1}, "workers is -1"),
        ({"seed": 2**40}, "expected an int of at most 31 bits"),
    ],
)
def test_arguments_out_of_range_are_refused(photos, tmp_path, named, message):
    with pytest.raises(ParameterError, match=message):
        Plain()(small(), photos, output=tmp_path / "out", **named)
    assert not (tmp_path / "out").exists()


def test_a_model_in_half_precision_is_refused(photos, tmp_path):
    model = small()
    model.module.bfloat16()
    with pytest.raises(UnsupportedModel, match="load it in float32"):
        Plain()(model, photos, output=tmp_path / "out")


def test_a_defended_model_is_refused_because_its_defences_would_be_lost(photos, tmp_path):
    model = small().defended(["jpeg quality=75"])
    with pytest.raises(UnsupportedModel, match=r"=75 is behind defences.*train the model wi"):
        Plain()(model, photos, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_prediction_function_is_refused(photos, tmp_path):
    def guess(images):
        return torch.zeros(len(images), 3)

    model = HookedModel.of_function(
        guess, outputs="logits", num_classes=3, input_size=(3, 8, 8), id="service"
    )
    with pytest.raises(UnsupportedModel, match="service is a prediction function"):
        Plain()(model, photos, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def folder_of(root: Path, *labels: str) -> Path:
    images, _ = pixels(len(labels))
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (root / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / label / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("", "", ""), r"no image has a label \(first 0.png\)"),
        (("a", "b", "", "c"), r"1 images have no label \(first 2.png\)"),
        (("a", "b", "a", "b"), r"2 labels \(a, b …\), and module:Small has 3 classes without"),
        (("0", "1", "3", "1"), r"3 labels|3 classes"),
    ],
)
def test_images_whose_labels_do_not_fit_are_refused(tmp_path, labels, message):
    images = folder_of(tmp_path / "images", *labels)
    if labels[-1] == "1":
        Plain(epochs=1)(small(), images, output=tmp_path / "out")  # three labels for three classes
        return
    with pytest.raises(ParameterError, match=message) as caught:
        Plain()(small(), images, output=tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_labels_in_natural_order_become_the_names_of_classes(tmp_path):
    images = folder_of(tmp_path / "images", "cat10", "cat2", "dog", "cat2", "dog", "cat10")
    result = Plain(epochs=1, batch_size=2)(small(), images, output=tmp_path / "out")
    trained = result.model(small(), technique=Plain())
    assert list(trained.classes) == ["cat2", "cat10", "dog"]
    with pytest.raises(ParameterError, match="the label 'fox' is no class"):
        Plain(epochs=1)(
            small(), images, held_out=folder_of(tmp_path / "more", "dog", "fox"),
            output=tmp_path / "other",
        )  # fmt: skip


def test_names_of_a_models_classes_are_found_as_users_write_them(tmp_path):
    images = folder_of(tmp_path / "images", "Tiger_Cat", "owl", "fish", "2", "1", "owl")
    named = small()
    given = HookedModel(
        named.module, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(3, 8, 8), crop_pct=1.0,
        class_names=["owl", "tiger cat, cat", "fish"],
    )  # fmt: skip
    result = Plain(epochs=1, batch_size=2)(given, images, output=tmp_path / "out")
    assert list(result.model(given, technique=Plain()).classes)[1] == "tiger cat, cat"
    images = folder_of(tmp_path / "rusty", "owl", "rust")
    with pytest.raises(ParameterError, match=r"'rust' is no class of module:Small: no class is"):
        Plain()(given, images, output=tmp_path / "other")


def test_one_image_and_an_unreadable_image_are_refused(tmp_path):
    alone = folder_of(tmp_path / "alone", "0")
    with pytest.raises(ParameterError, match="1 image to train on and to hold out"):
        Plain()(small(), alone, output=tmp_path / "out")
    images = folder_of(tmp_path / "images", "0", "1", "2", "0")
    (images / "1" / "1.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"1/1\.png: .*a training needs every image") as caught:
        Plain()(small(), images, output=tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_held_out_images_are_not_trained_on(tmp_path, photos):
    seen = []

    class Watches(Plain):
        def loss(self, network, batch, progress):
            if network.training:
                seen.extend(float(image.sum()) for image in batch.images)
            return super().loss(network, batch, progress)

    result = Watches(epochs=2)(small(0), photos, output=tmp_path / "out")
    sums = {round(float(image.sum()) / 255, 3) for image in pixels(40)[0].astype(float)}
    assert len({round(value, 3) for value in seen}) == 32
    assert {round(value, 3) for value in seen} <= sums
    assert result.card["data"]["images"] == 32
    assert result.card["data"]["held_out_images"] == 8


def test_the_result_has_a_figure_and_one_row(photos, tmp_path):
    result = Plain()(small(), photos, output=tmp_path / "out", licence="CC0")
    assert result.figure().axes
    (row,) = result.summary()
    assert (row["images"], row["held_out_images"], row["steps"]) == (32, 8, 12)
    assert row["times_standard"] == 1
    assert row["last_loss"] < row["first_loss"]
    assert result.card["data"]["licence"] == "CC0"


class Compresses(TrainingTechnique):
    """A new network that makes images from a few numbers, without labels."""

    needs_labels = False
    normalised = False
    epochs: int = 6
    batch_size: int = 8
    learning_rate: float = 0.01

    def build(self, model):
        size = 3 * model.input_size[1] * model.input_size[2]
        return nn.Sequential(
            nn.Flatten(), nn.Linear(size, 6), nn.Linear(6, size), nn.Sigmoid(),
            nn.Unflatten(1, tuple(model.input_size)),
        )  # fmt: skip

    def loss(self, network, batch, progress):
        assert batch.labels.tolist() == [-1] * len(batch.images)
        return {"total": functional.mse_loss(network(batch.images), batch.images)}


def test_a_new_network_needs_no_labels_and_takes_pixels_as_they_are(tmp_path, photos):
    images, _ = pixels(40)
    np.savez(tmp_path / "bare.npz", images=images)
    before = torch.get_rng_state()
    result = Compresses()(small(0), tmp_path / "bare.npz", output=tmp_path / "out", seed=4)
    assert torch.equal(torch.get_rng_state(), before)  # the first weights are the seed's
    assert result.losses[-1, 0] < 0.7 * result.losses[0, 0]
    loaded = result.model(small(0), technique=Compresses())
    assert (loaded.mean, loaded.std) == ((0.0,) * 3, (1.0,) * 3)
    held = torch.from_numpy(images[:3]).permute(0, 3, 1, 2).float() / 255
    assert loaded.module(held).shape == held.shape
    again = Compresses()(small(0), tmp_path / "bare.npz", output=tmp_path / "again", seed=5)
    assert again.losses[0, 0] != result.losses[0, 0]
