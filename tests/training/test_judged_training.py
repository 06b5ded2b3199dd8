"""The card of a training says what holds under attacks, radii and norms not trained on."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.conftest import small
from torch import Tensor, nn
from torch.nn import functional

from timmscope import HookedModel, ParameterError, TrainingBatch, load_trained, technique

Training: Any = technique("adversarial-training")


class TwoClasses(nn.Module):
    """Logits 0 and `w · x + b`: whether a ball holds a change of class is known."""

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
    images = 0.3 + 0.4 * torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = (TwoClasses()(images).argmax(1) + (torch.arange(40) % 8 == 0)) % 2
    return TrainingBatch(images, labels, seed=3)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.02), ("l2", 0.1)])
def test_on_a_linear_model_each_figure_is_that_of_its_ball(batch, norm, epsilon):
    network = TwoClasses().eval()
    training = Training(norm=norm, epsilon=epsilon, judge_steps=20)
    found = training.evaluate(network, batch)
    score = network.fc(batch.images.flatten(1))[:, 0].detach()
    margin = torch.where(batch.labels == 1, score, -score)
    lengths = {"linf": network.fc.weight.abs().sum(), "l2": network.fc.weight.norm()}
    usual = {"linf": 8 / 255, "l2": 3.0 * 4 / 224}
    other = {"linf": "l2", "l2": "linf"}[norm]
    there = usual[other] * epsilon / usual[norm]
    expected = {
        "accuracy": margin > 0,
        "accuracy under PGD-20": margin > epsilon * lengths[norm],
        "accuracy under margin PGD-20": margin > epsilon * lengths[norm],
        f"accuracy under PGD-20, {norm} {2 * epsilon:.3g}": margin > 2 * epsilon * lengths[norm],
        f"accuracy under PGD-20, {other} {there:.3g}": margin > there * lengths[other],
    }
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].tolist() == values.tolist(), name
    shares = [float(values.float().mean()) for values in expected.values()]
    assert len(set(shares)) >= 3  # the balls differ


class Scaled(nn.Module):
    """Logits so large that float32 has no gradient of their softmax."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.inner = small(0).module.eval()

    def forward(self, x: Tensor) -> Tensor:
        return 1e6 * self.inner(x)


def test_a_network_whose_softmax_is_saturated_is_found_out():
    images = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    network = Scaled().eval()
    with torch.no_grad():
        labels = network(images).argmax(1)
    found = Training(epsilon=0.1, judge_steps=10).evaluate(
        network, TrainingBatch(images, labels, seed=3)
    )
    seems, is_so = (found[f"accuracy under {kind}PGD-10"] for kind in ("", "margin "))
    assert float(is_so.float().mean()) < float(seems.float().mean()) - 0.2


def test_further_attacks_and_a_model_beside_are_in_the_card(photos, tmp_path):
    beside = small(0)
    training = Training(
        epochs=1, batch_size=8, steps=1, epsilon=0.05, judge_steps=2, beside=beside,
        judged_by=("pgd epsilon=0.05 steps=3", "fgsm norm=l2 epsilon=0.3"),
    )  # fmt: skip
    model = small(0)
    result = training(model, photos, held_out=photos, output=tmp_path / "out")
    trained = result.model(model, technique=training)
    with np.load(photos) as arrays:
        images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).float() / 255
        labels = torch.from_numpy(arrays["labels"])
    with torch.no_grad():
        lost = float((beside(images).argmax(1) == labels).float().mean()) - float(
            (trained(images).argmax(1) == labels).float().mean()
        )
    assert result.held_out["accuracy lost"] == pytest.approx(lost, abs=1e-6)
    assert result.provenance.named["beside"]["sha256"] == beside.weights_sha256
    names = [name for name in result.held_out if "norm=l2" in name or "steps=3" in name]
    assert [name.split()[2] for name in names] == ["pgd", "fgsm"]
    fgsm = technique("fgsm")(norm="l2", epsilon=0.3)
    attacked = fgsm(trained, images, labels.tolist())  # type: ignore[operator]
    held = float((~attacked.success & ~attacked.already_wrong).float().mean())
    assert result.held_out[names[1]] == pytest.approx(held, abs=1e-6)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["held_out"]["accuracy lost"] == result.held_out["accuracy lost"]
    again = load_trained(tmp_path / "out", model, technique=training)
    assert again.weights_sha256 == trained.weights_sha256


class OneMore(nn.Module):
    num_classes = 4

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.fc(x.flatten(1)))


def test_a_model_beside_of_other_classes_is_refused_in_one_line(photos, tmp_path):
    other = HookedModel(OneMore(), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 8, 8))
    training = Training(epochs=1, steps=1, judge_steps=1, beside=other)
    with pytest.raises(ParameterError, match=r"beside is .* 4 classes, and the trained") as caught:
        training(small(0), photos, output=tmp_path / "out")
    assert "\n" not in str(caught.value)
