"""Training on interval bounds minimises the loss of its paper, and narrows the bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.training.conftest import pixels, same_bytes
from torch import Tensor, nn
from torch.nn import functional

from timmscope import Ball, HookedModel, ParameterError, TrainingBatch, TrainingProgress, technique
from timmscope.testing.subjects import recorded_progress
from timmscope_defence.attacked_images import attacked_images

Training: Any = technique("ibp-training")


class TwoClasses(nn.Module):
    """Logits 0 and `w · x`: the worst change in a box is known."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(48, 2, bias=False)
        self.fc.weight.data[0] = 0
        generator = torch.Generator().manual_seed(2)
        self.fc.weight.data[1] = torch.randn(48, generator=generator) / 7

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


@pytest.fixture
def batch() -> TrainingBatch:
    """Images so far from black and white that no change is clipped."""
    images = 0.4 + 0.2 * torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return TrainingBatch(images, torch.tensor([0, 1, 0, 1, 1, 0]), seed=3)


def worst(network: TwoClasses, images: Tensor, labels: Tensor, epsilon: float) -> float:
    """Mean cross-entropy at the worst corner of every box."""
    weight = network.fc.weight[1]
    score = images.flatten(1) @ weight
    margin = torch.where(labels == 1, score, -score) - epsilon * weight.abs().sum()
    return functional.softplus(-margin).mean().item()


@pytest.mark.parametrize(
    ("step", "kappa", "epsilon"),
    [
        (0, 1.0, 0.0),
        (9, 1.0, 0.0),
        (10, 1.0, 0.0),
        (35, 0.75, 0.02),
        (60, 0.5, 0.04),
        (99, 0.5, 0.04),
    ],
)
def test_kappa_falls_and_epsilon_rises_after_the_warm_up(batch, step, kappa, epsilon):
    network = TwoClasses()
    training = Training(epsilon=0.04)
    found = training.loss(network, batch, TrainingProgress(step, 100, 10))
    natural = worst(network, batch.images, batch.labels, 0)
    bounded = worst(network, batch.images, batch.labels, epsilon)
    assert found["total"].item() == pytest.approx(kappa * natural + (1 - kappa) * bounded, abs=1e-6)
    assert found["cross-entropy"].item() == pytest.approx(natural, abs=1e-6)


def test_a_small_box_lies_around_the_attacked_image_and_inside_the_ball(batch):
    network, epsilon, share = TwoClasses(), 0.05, 0.4
    training = Training(epsilon=epsilon, box=share, steps=3, warmup_share=0, ramp_share=0, kappa=0)
    found = training.loss(network, batch, TrainingProgress(5, 10, 5))["total"].item()
    ball = Ball(norm="linf", epsilon=epsilon)
    attacked = attacked_images(network, batch, ball, 3, 2.5 * epsilon / 3)
    middle = (attacked - batch.images).clamp(-0.6 * epsilon, 0.6 * epsilon) + batch.images
    assert found == pytest.approx(worst(network, middle, batch.labels, share * epsilon), abs=1e-6)
    # On a linear model the attack reaches the corner, so the small box's worst is the ball's.
    assert found == pytest.approx(worst(network, batch.images, batch.labels, epsilon), abs=1e-4)


def small() -> HookedModel:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.1),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, 3),
    )  # fmt: skip
    module.num_classes = 3  # type: ignore[assignment]
    return HookedModel(module.eval(), mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(3, 8, 8),
                       id="small", class_names=["0", "1", "2"])  # fmt: skip


def test_dropout_and_batch_normalisation_train_and_the_bounds_are_those_of_eval_mode():
    images, labels = pixels(12)
    batch = TrainingBatch(
        torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels) % 3, 1
    )
    network = small().module.train()
    Training(warmup_share=0, ramp_share=0).loss(network, batch, TrainingProgress(0, 10, 5))
    assert network.training
    assert int(network[1].num_batches_tracked) == 1


@pytest.fixture
def photos(tmp_path):
    images, labels = pixels(40)
    np.savez(tmp_path / "photos.npz", images=images, labels=labels)
    return tmp_path / "photos.npz"


def test_interrupted_it_ends_with_the_same_bytes_and_proves_more_than_it_did(photos, tmp_path):
    training = Training(
        epochs=20, batch_size=8, epsilon=0.01, learning_rate=0.01, box=0.5, steps=2, judge_steps=5
    )
    whole = training(small(), photos, output=tmp_path / "whole")
    with recorded_progress(stop=30), pytest.raises(KeyboardInterrupt):
        training(small(), photos, output=tmp_path / "stopped", checkpoint_every=7)
    training(small(), photos, output=tmp_path / "stopped")
    assert same_bytes(tmp_path / "whole", tmp_path / "stopped")
    held_out = whole.held_out
    assert held_out["certified"] <= held_out["accuracy under PGD-5"] <= held_out["accuracy"]
    # After the warm-up, a step makes one pass of the images, two of the attack, one of the bounds.
    assert whole.card["cost"]["times_standard"] == pytest.approx(0.1 * 1 + 0.9 * 4, abs=0.05)


@pytest.mark.parametrize(
    "wrong", [{"epsilon": 0}, {"epsilon": 8}, {"box": 0}, {"kappa": 1.5}, {"warmup_share": 1}]
)
def test_parameters_out_of_range_are_refused(wrong):
    with pytest.raises(ParameterError):
        Training(**wrong)
