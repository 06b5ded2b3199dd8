"""Small image sets, models and trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from timmscope import HookedModel, TrainingTechnique
from timmscope_registry.hooks import OwnGenerators


class Plain(TrainingTechnique):
    """Cross-entropy, and nothing else; no plugin registers it."""

    epochs: int = 3
    batch_size: int = 8
    learning_rate: float = 0.05

    def build(self, model: HookedModel) -> nn.Module:
        return model.trainable_copy()

    def loss(self, network: Any, batch: Any, progress: Any) -> dict[str, Tensor]:
        return {"total": functional.cross_entropy(network(batch.images), batch.labels)}


class Small(nn.Sequential):
    """A convolution, a batch norm and dropout, so that buffers and random numbers count."""

    num_classes = 3

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, stride=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(36, 3),
        )


def small(dropout: float = 0.5) -> HookedModel:
    with OwnGenerators(0):
        module = Small(dropout)
    return HookedModel(module, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(3, 8, 8), crop_pct=1.0)


def pixels(count: int, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Images whose main colour is their label."""
    random = np.random.default_rng(5)
    images = random.integers(0, 120, (count, size, size, 3), np.uint8)
    labels = np.arange(count) % 3
    images[np.arange(count), ..., labels] += 100
    return images, labels


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """40 labelled images of 8×8 px; 32 of them are trained on."""
    images, labels = pixels(40)
    np.savez(tmp_path / "photos.npz", images=images, labels=labels)
    return tmp_path / "photos.npz"


@pytest.fixture
def model() -> HookedModel:
    return small()


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two folders hold the same weights and the same card."""
    names = ("weights.safetensors", "card.json")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def forward(model: HookedModel, count: int = 3) -> Tensor:
    images, _ = pixels(count)
    with torch.no_grad():
        return model(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
