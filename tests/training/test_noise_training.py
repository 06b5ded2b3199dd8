"""Training with noise minimises the loss on noisy images, and says what smoothing sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.training.conftest import same_bytes, small
from torch import Tensor
from torch.nn import functional

from timmscope import ParameterError, TrainingBatch, TrainingProgress, technique
from timmscope.testing.subjects import recorded_progress

Training: Any = technique("noise-training")
START = TrainingProgress(0, 10, 5)


def batch(count: int = 5, seed: int = 9) -> TrainingBatch:
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    return TrainingBatch(images, torch.arange(count) % 3, seed=seed)


def test_the_loss_is_the_cross_entropy_of_images_with_noise_that_is_not_clipped():
    network = small(0).module.eval()
    given = batch()
    drawn = [torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(9 + n)) for n in range(5)]
    noisy = given.images + 0.7 * torch.stack(drawn)
    assert float(noisy.min()) < -0.5
    expected = functional.cross_entropy(network(noisy), given.labels)
    assert Training(sigma=0.7).loss(network, given, START)["total"].item() == pytest.approx(
        expected.item(), abs=1e-6
    )


def test_each_step_has_new_noise_and_a_resumed_training_the_same(photos, tmp_path):
    training = Training(epochs=4, batch_size=8, judge_steps=2)
    network = small(0).module.eval()
    one, other = (Training().loss(network, batch(seed=seed), START)["total"] for seed in (1, 2))
    assert one.item() != other.item()
    whole = training(small(), photos, output=tmp_path / "whole")
    with recorded_progress(stop=9), pytest.raises(KeyboardInterrupt):
        training(small(), photos, output=tmp_path / "stopped", checkpoint_every=4)
    training(small(), photos, output=tmp_path / "stopped")
    assert same_bytes(tmp_path / "whole", tmp_path / "stopped")
    assert whole.card["cost"]["times_standard"] == 1
    assert whole.preview_names == ["images", "with noise"]
    assert 0 <= whole.held_out["accuracy under noise"] <= 1


def test_the_card_names_balls_that_were_not_trained_on(photos, tmp_path):
    result = Training(epochs=1, batch_size=8, judge_steps=2, sigma=0.1)(
        small(0), photos, output=tmp_path / "out"
    )
    usual = 8 / 255 * 0.1 / (3 * 8 / 224)
    assert set(result.held_out) == {
        "loss", "error", "accuracy", "accuracy under PGD-2", "accuracy under margin PGD-2",
        "accuracy under PGD-2, l2 0.2", f"accuracy under PGD-2, linf {usual:.3g}",
        "accuracy under noise",
    }  # fmt: skip


@pytest.mark.parametrize("sigma", [0, -1, float("inf")])
def test_a_sigma_out_of_range_is_refused(sigma):
    with pytest.raises(ParameterError, match="sigma"):
        Training(sigma=sigma)


def test_pictures_of_noise_are_shown_in_the_range_of_pixels():
    shown: Tensor = Training(sigma=2).preview(small(0).module, batch(4))["with noise"]
    assert 0 <= float(shown.min()) < float(shown.max()) <= 1
