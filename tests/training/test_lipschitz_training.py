"""Lipschitz-margin training makes layers that stretch nothing, and certifies digits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.digits.images import write_digits
from tests.digits.load import digits_network, register
from tests.training.conftest import same_bytes, small
from torch import Tensor, nn
from torch.nn import functional

from timmscope import (
    HookedModel,
    TrainingBatch,
    TrainingProgress,
    UnsupportedModel,
    load_model,
    technique,
)
from timmscope.testing.subjects import recorded_progress
from timmscope_defence.lipschitz import lipschitz_of

Training: Any = technique("lipschitz-training")
START = TrainingProgress(0, 10, 5)


class Small(nn.Sequential):
    num_classes = 3

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, stride=2, groups=2),
            nn.BatchNorm2d(6),
            nn.Flatten(),
            nn.Linear(54, 3),
        )


def model() -> HookedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Small().eval()
    module[3].running_var.fill_(0.01)
    return HookedModel(
        module, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(3, 8, 8), crop_pct=1, id="small"
    )


def norms(network: nn.Module) -> dict[str, float]:
    """Largest singular value of each layer of `Small`, from its matrix in float64."""
    found = {}
    for name, size in (("0", (3, 8, 8)), ("2", (6, 8, 8)), ("5", (54,))):
        layer: Any = network.get_submodule(name)
        weight = layer.weight.detach().double()
        columns = torch.eye(math.prod(size), dtype=torch.float64).view(-1, *size)
        if isinstance(layer, nn.Linear):
            matrix = weight
        else:
            matrix = functional.conv2d(
                columns, weight, None, layer.stride, layer.padding, 1, layer.groups
            ).flatten(1)  # fmt: skip
        found[name] = float(torch.linalg.matrix_norm(matrix, 2))
    return found


@pytest.mark.parametrize("layers", ["spectral", "orthogonal"])
def test_each_layer_has_the_norm_one_before_and_after_training(layers, photos, tmp_path):
    training = Training(layers=layers, epochs=5, batch_size=8, judge_steps=2, learning_rate=2e-3)
    network = training.make_network(model())
    assert norms(network.eval()) == pytest.approx(dict.fromkeys("025", 1.0), abs=0.02)
    result = training(model(), photos, output=tmp_path / "out")
    trained = result.model(model())
    assert norms(trained.module) == pytest.approx(dict.fromkeys("025", 1.0), abs=0.05)
    assert trained.std == (1.0,) * 3  # it takes pixels as they are
    norm: Any = trained.module[3]
    assert float((norm.weight.abs() / (norm.running_var + norm.eps).sqrt()).max()) <= 1 + 1e-6
    bound = technique("lipschitz-bound")(clever_batches=0)(  # type: ignore[operator]
        trained, torch.rand(2, 3, 8, 8)
    )
    assert 0.2 < bound.global_bound <= 1.1
    if layers == "orthogonal":
        rows = trained.module[5].weight.detach()
        assert torch.allclose(rows @ rows.T, torch.eye(3), atol=1e-5)


def test_the_loss_adds_the_margin_to_all_other_logits():
    network = small(0).module.eval()
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    batch = TrainingBatch(images, torch.tensor([0, 1, 2, 1]), seed=9)
    logits = network(images)
    for row, label in enumerate(batch.labels.tolist()):
        for other in range(3):
            if other != label:
                logits[row, other] += math.sqrt(2) * 0.3
    expected = functional.cross_entropy(5 * logits, batch.labels)
    found = Training(epsilon=0.3, scale=5).loss(network, batch, START)["total"]
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_resumed_training_ends_with_the_same_bytes(photos, tmp_path):
    training = Training(epochs=4, batch_size=8, judge_steps=2)
    whole = training(model(), photos, output=tmp_path / "whole")
    with recorded_progress(stop=9), pytest.raises(KeyboardInterrupt):
        training(model(), photos, output=tmp_path / "stopped", checkpoint_every=4)
    training(model(), photos, output=tmp_path / "stopped")
    assert same_bytes(tmp_path / "whole", tmp_path / "stopped")
    held_out = whole.held_out
    assert held_out["certified"] <= held_out["accuracy under PGD-2"] <= held_out["accuracy"]


def test_the_trained_network_has_layers_and_a_digest_like_any_other(photos, tmp_path):
    training = Training(epochs=1, batch_size=8, judge_steps=1)
    trained = training(model(), photos, output=tmp_path / "out").model(model())
    assert {"0", "2", "5"} <= set(trained.layers)
    images = torch.rand(2, 3, 8, 8)
    attack = technique("pgd")(steps=2)
    assert attack(trained, images).images.shape == images.shape  # type: ignore[operator]
    with torch.no_grad():
        assert torch.equal(trained(images), trained(images))


class Sum(nn.Module):
    num_classes = 2

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2]


def test_a_network_without_layers_to_limit_is_refused():
    given = HookedModel(Sum(), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 8, 8))
    with pytest.raises(UnsupportedModel, match="runs no linear or convolutional layer"):
        Training().build(given)


def test_a_network_without_a_bound_is_refused_before_it_is_trained():
    vit = load_model("random:vit_tiny_patch16_224?seed=0&img_size=16&patch_size=8&num_classes=3")
    with pytest.raises(UnsupportedModel, match="Lipschitz bound does not reach through"):
        Training().build(vit)


# Real digits


@pytest.mark.parametrize(
    "layers",
    [
        pytest.param("spectral", marks=pytest.mark.slow),
        pytest.param("orthogonal", marks=pytest.mark.soak),  # takes three times as long
    ],
)
def test_a_share_of_digits_is_certified_and_no_attack_breaks_a_certificate(layers, tmp_path: Path):
    register()
    trained, held_out = write_digits(tmp_path / "images")
    training = Training(layers=layers, learning_rate=2e-3, epochs=40)
    result = training(
        load_model("digits:cnn?seed=0"), trained, held_out=held_out, output=tmp_path / "out"
    )
    assert result.held_out["accuracy"] >= 0.9
    assert result.held_out["certified"] >= 0.5
    assert result.held_out["certified"] <= result.held_out["accuracy under margin PGD-20"]

    with np.load(held_out) as arrays:
        images = torch.from_numpy(arrays["images"])[:100, None].float() / 255
        labels = arrays["labels"][:100].tolist()
    model = result.model()
    bound = technique("lipschitz-bound")(clever_samples=6)(model, images, labels)  # type: ignore[operator]
    share = float(((bound.radius >= 0.25) & bound.correct).float().mean())
    assert share == pytest.approx(result.held_out["certified"], abs=0.12)
    estimate = torch.tensor(bound.notes["clever"])
    certified = bound.radius[bound.correct].clamp(max=0.5)
    assert bool((estimate[bound.correct] >= 0.99 * certified.float()).all())
    attack = technique("pgd")(norm="l2", epsilon=1.0, steps=30, loss="margin")
    broken = attack(model, images, labels)  # type: ignore[operator]
    assert bool((broken.l2[broken.success] >= bound.radius[broken.success] - 1e-6).all())

    standard = technique("lipschitz-bound")(clever_batches=0)(  # type: ignore[operator]
        digits_network("standard"), images, labels
    )
    assert float(bound.radius.mean()) > 5 * float(standard.radius.mean())
    logits = lipschitz_of(model, model.module, images[:1])
    assert logits.constant == pytest.approx(bound.global_bound, rel=1e-6)
