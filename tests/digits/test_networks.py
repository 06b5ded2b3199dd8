"""The committed digits networks are what their cards say, and their trainer reaches the bars."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.digits.__main__ import PARAMETERS, train
from tests.digits.images import write_digits
from tests.digits.load import NETWORKS, digits_network
from torch import Tensor

import timmscope.checked_json as checked_json
from timmscope import HookedModel, technique

CLEAN = {"standard": 0.96, "fast": 0.97, "pgd": 0.96, "trades": 0.95, "ibp": 0.90}
"""Smallest accuracy on 397 held-out digits."""
ROBUST = {"fast": 0.82, "pgd": 0.82, "trades": 0.80, "ibp": 0.55}
"""Smallest accuracy on them under PGD-50 in the ball of 0.1; one digit is 0.0025."""


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Tensor]:
    """The 397 digits that no network was trained on, and their labels."""
    _, file = write_digits(tmp_path_factory.mktemp("digits"))
    with np.load(file) as arrays:
        images = torch.from_numpy(arrays["images"])[:, None].float() / 255
        return images, torch.from_numpy(arrays["labels"])


def accuracy(model: HookedModel, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


def robust(model: HookedModel, images: Tensor, labels: Tensor, epsilon: float, steps: int) -> float:
    """Accuracy under the attack `pgd`, which shares only the ball with the training."""
    attack = technique("pgd")(epsilon=epsilon, steps=steps)
    attacked = attack(model, images, labels.tolist(), batch_size=200)  # type: ignore[operator]
    return float((~attacked.success & ~attacked.already_wrong).float().mean())


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_committed_network_has_the_accuracy_that_its_card_says(name, held_out):
    images, labels = held_out
    model = digits_network(name)
    card = checked_json.load((NETWORKS / name / "card.json").read_bytes())
    assert accuracy(model, images, labels) == pytest.approx(card["held_out"]["accuracy"], abs=1e-6)
    assert card["held_out"]["accuracy"] >= CLEAN[name]
    assert card["held_out"]["accuracy under PGD-50"] >= ROBUST.get(name, 0)
    assert card["environment"][0]["threads"] == 1
    size = (NETWORKS / name / "weights.safetensors").stat().st_size
    assert size == pytest.approx(270e3, rel=0.02)


def test_the_trained_networks_hold_where_the_standard_one_breaks(held_out):
    images, labels = (part[:100] for part in held_out)
    found = {
        name: robust(digits_network(name), images, labels, 0.1, 20) for name in ("standard", "pgd")
    }
    assert found["pgd"] >= found["standard"] + 0.2


@pytest.mark.slow
def test_the_attack_pgd_finds_what_the_cards_say_and_trades_is_best_at_twice_the_radius(held_out):
    images, labels = held_out
    at_twice = {}
    for name in PARAMETERS:
        model = digits_network(name)
        card = checked_json.load((NETWORKS / name / "card.json").read_bytes())
        found = robust(model, images, labels, 0.1, 50)
        assert found == pytest.approx(card["held_out"]["accuracy under PGD-50"], abs=0.01)
        at_twice[name] = robust(model, images, labels, 0.2, 50)
    assert max(at_twice, key=lambda name: at_twice[name]) == "trades", at_twice
    assert at_twice["standard"] <= 0.1


@pytest.mark.parametrize(
    "name",
    [  # the two that take minutes are sweeps
        pytest.param(
            name, marks=pytest.mark.soak if name in ("pgd", "trades") else pytest.mark.slow
        )
        for name in PARAMETERS
    ],
)
def test_the_trainer_reaches_the_bars(name, tmp_path: Path):
    result = train(name, tmp_path)
    assert result.held_out["accuracy"] >= CLEAN[name]
    if name == "standard":
        assert result.held_out["accuracy under PGD-50"] <= 0.65
    else:
        assert result.held_out["accuracy under PGD-50"] >= ROBUST[name]
    assert not result.card["stopped"]
