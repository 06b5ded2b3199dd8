"""Adversarial training minimises the losses of its papers, and counts what they cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.training.conftest import Plain, forward, small
from torch import Tensor, nn
from torch.nn import functional

from timmscope import HookedModel, ParameterError, TrainingBatch, TrainingProgress, technique

Training: Any = technique("adversarial-training")
START = TrainingProgress(0, 10, 5)


class TwoClasses(nn.Module):
    """Logits 0 and `w · x + b`: the worst change inside a ball is known."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(48, 1)
        generator = torch.Generator().manual_seed(2)
        self.fc.weight.data = torch.randn(1, 48, generator=generator) / 7
        self.fc.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        score = self.fc(x.flatten(1))
        return torch.cat([torch.zeros_like(score), score], 1)


@pytest.fixture
def batch() -> TrainingBatch:
    """Images so far from black and white that no change is clipped."""
    images = 0.4 + 0.2 * torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return TrainingBatch(images, torch.tensor([0, 1, 0, 1, 1, 0]), seed=3)


def worst(network: TwoClasses, batch: TrainingBatch, loss: Tensor) -> Tensor:
    """Mean cross-entropy when the margin of every image falls by `loss`."""
    score = network.fc(batch.images.flatten(1))[:, 0]
    margin = torch.where(batch.labels == 1, score, -score) - loss
    return functional.softplus(-margin).mean()


@pytest.mark.parametrize("method", ["pgd", "standard"])
def test_on_a_linear_model_the_loss_is_that_of_the_worst_corner(batch, method):
    network = TwoClasses()
    epsilon = 0.05 if method == "pgd" else 0.0
    found = Training(method=method, epsilon=0.05, steps=9)
    expected = worst(network, batch, epsilon * network.fc.weight.abs().sum())
    got = found.loss(network, batch, START)["total"]
    assert got.item() == pytest.approx(expected.item(), abs=1e-6)


def test_in_an_l2_ball_the_loss_is_that_of_the_step_along_the_weights(batch):
    network = TwoClasses()
    expected = worst(network, batch, 0.3 * network.fc.weight.norm())
    found = Training(method="pgd", norm="l2", epsilon=0.3, steps=60, step_size=0.05)
    assert found.loss(network, batch, START)["total"].item() == pytest.approx(
        expected.item(), abs=1e-4
    )


def test_fast_makes_one_step_of_five_quarters_epsilon_from_a_random_point(batch):
    network, epsilon = TwoClasses(), 0.05
    start = (
        torch.stack(
            [
                (2 * torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(3 + row)) - 1)
                for row in range(6)
            ]
        )
        * epsilon
    )
    direction = network.fc.weight.sign().reshape(1, 3, 4, 4)
    uphill = torch.where(batch.labels == 1, -1.0, 1.0)[:, None, None, None] * direction
    change = (start + 1.25 * epsilon * uphill).clamp(-epsilon, epsilon)
    assert (change.abs() < epsilon - 1e-6).any()  # some stay inside: 1.25 ε does not cross the ball
    expected = functional.cross_entropy(network(batch.images + change), batch.labels)
    got = Training(method="fast", epsilon=epsilon).loss(network, batch, START)["total"]
    assert got.item() == pytest.approx(expected.item(), abs=1e-6)


def test_trades_is_the_loss_of_its_authors_code(batch):
    """Their loop: KL from the natural prediction, steps of sign, projection, clip."""
    network = small(0).module.eval()
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    batch = TrainingBatch(images, torch.tensor([0, 1, 2, 1, 0]), seed=9)
    beta, epsilon, step, steps = 4.0, 0.06, 0.02, 5

    noise = [
        torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(9 + row)) for row in range(5)
    ]
    attacked = (images + 0.001 * torch.stack(noise)).clamp(0, 1)
    natural = network(images).softmax(1).detach()
    for _ in range(steps):
        attacked = attacked.detach().requires_grad_()
        loss = functional.kl_div(network(attacked).log_softmax(1), natural, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, attacked)
        attacked = attacked.detach() + step * gradient.sign()
        attacked = torch.min(torch.max(attacked, images - epsilon), images + epsilon).clamp(0, 1)
    network.train()
    logits = network(images)
    cross_entropy = functional.cross_entropy(logits, batch.labels)
    divergence = functional.kl_div(
        network(attacked).log_softmax(1), logits.softmax(1), reduction="batchmean"
    )
    expected = cross_entropy + beta * divergence

    fresh = small(0).module.train()
    training = Training(method="trades", beta=beta, epsilon=epsilon, step_size=step, steps=steps)
    terms = training.loss(fresh, batch, START)
    assert terms["total"].item() == pytest.approx(expected.item(), abs=1e-5)
    assert terms["divergence"].item() == pytest.approx(divergence.item(), abs=1e-5)
    expected.backward()
    terms["total"].backward()
    for ours, theirs in zip(fresh.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_the_attack_runs_in_eval_mode_and_leaves_no_gradient(batch):
    network = small(0).module.train()
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    batch = TrainingBatch(images, torch.tensor([0, 1, 2, 1]), seed=9)
    Training(method="pgd", steps=3).loss(network, batch, START)
    assert network.training
    assert int(network[1].num_batches_tracked) == 1  # of the loss itself
    assert all(weight.grad is None for weight in network.parameters())


@pytest.mark.parametrize(
    ("parameters", "times"),
    [
        ({"method": "standard"}, 1),
        ({"method": "fast"}, 2),
        ({"method": "pgd", "steps": 3}, 4),
        ({"method": "trades", "steps": 4}, 6.5),
    ],
)
def test_the_card_counts_the_cost_beside_standard_training(photos, tmp_path, parameters, times):
    training = Training(epochs=1, batch_size=8, judge_steps=2, **parameters)
    result = training(small(0), photos, output=tmp_path / "out")
    assert result.card["cost"]["times_standard"] == times


def test_figures_of_held_out_images_are_those_of_the_trained_network(photos, tmp_path):
    training = Training(method="pgd", epochs=2, batch_size=8, steps=2, epsilon=0.02, judge_steps=3)
    model = small(0)
    result = training(model, photos, held_out=photos, output=tmp_path / "out")
    trained: HookedModel = result.model(model)
    with np.load(photos) as file:
        images = torch.from_numpy(file["images"]).permute(0, 3, 1, 2).float() / 255
        labels = torch.from_numpy(file["labels"])
    with torch.no_grad():
        right = (trained(images).argmax(1) == labels).float().mean()
    assert result.held_out["accuracy"] == pytest.approx(right.item())
    assert result.held_out["accuracy under PGD-3"] <= result.held_out["accuracy"]
    shown, attacked = result.previews
    assert 0 < (attacked - shown).abs().max() <= 0.02 + 1e-6


def test_fast_training_asks_its_guard_and_the_others_do_not(batch):
    network = TwoClasses()
    for method in ("pgd", "trades", "standard"):
        assert Training(method=method).guard(network, batch) is None
    assert 0 <= Training(method="fast", epsilon=0.05).guard(network, batch) <= 1


def test_standard_training_equals_a_plain_cross_entropy(photos, tmp_path):
    shared = {"epochs": 2, "batch_size": 8, "learning_rate": 0.01}
    ours = Training(method="standard", judge_steps=1, **shared)
    Plain(**shared)(small(), photos, output=tmp_path / "plain")
    result = ours(small(), photos, output=tmp_path / "ours")
    plain = tmp_path / "plain" / "weights.safetensors"
    assert (tmp_path / "ours" / "weights.safetensors").read_bytes() == plain.read_bytes()
    assert forward(result.model(small())).isfinite().all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"epsilon": 8}, "8/255 is 0.03137"),
        ({"method": "fast", "steps": 7}, "fast has one step; for more choose pgd"),
        ({"epsilon": 0}, "epsilon"),
        ({"method": "free"}, "method"),
        ({"beta": -1}, "beta"),
    ],
)
def test_wrong_parameters_are_refused_in_one_line(parameters, message):
    with pytest.raises(ParameterError, match=message) as caught:
        Training(**parameters)
    assert "\n" not in str(caught.value)
