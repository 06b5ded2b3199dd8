"""Models whose every weight matters, and a tiny one whose maps are known by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from timmscope import HookedModel, load_model


def _awaken(module: nn.Module, seed: int = 7) -> None:
    """Fresh models are half asleep (last norms of residual branches start at zero): wake them."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            shape = part.weight.shape
            part.weight.data = 0.5 + torch.rand(shape, generator=generator)
            part.bias.data = 0.2 * torch.randn(shape, generator=generator)
            part.running_mean = 0.1 * torch.randn(shape, generator=generator)
            part.running_var = 0.5 + torch.rand(shape, generator=generator)
        biases = getattr(part, "attention_biases", None)
        if isinstance(biases, nn.Parameter):  # LeViT's tokens would all come out alike
            biases.data = 3 * torch.randn(biases.shape, generator=generator)


@pytest.fixture(scope="session")
def awake() -> Callable[[str], HookedModel]:
    """A random architecture with no zero weights, by `load_model` name."""
    known: dict[str, HookedModel] = {}

    def get(name: str) -> HookedModel:
        if name not in known:
            known[name] = load_model(name)
            _awaken(known[name].module)
        return known[name]

    return get


class PooledLinear(nn.Module):
    """A 2×2 patch convolution, global average pooling, a linear classifier."""

    def __init__(self, classes: int = 4, channels: int = 5) -> None:
        super().__init__()
        self.num_classes = classes
        self.features = nn.Conv2d(3, channels, 2, stride=2)
        self.fc = nn.Linear(channels, classes)
        generator = torch.Generator().manual_seed(3)
        for weight in self.parameters():
            weight.data = torch.randn(weight.shape, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


@pytest.fixture
def pooled_linear() -> HookedModel:
    """GAP and a linear layer over 8×8 images: Grad-CAM is CAM."""
    return HookedModel(PooledLinear().double(), mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, 8, 8))


@pytest.fixture
def noise() -> Tensor:
    """Three 8×8 images."""
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


SMALL = {
    "resnet18": ("random:resnet18?img_size=96&num_classes=10", "layer4"),
    "vgg11": ("random:vgg11?img_size=64&num_classes=10&mlp_ratio=0.05", "features"),
    "densenet121": ("random:densenet121?img_size=64&num_classes=10", "features"),
}


@pytest.fixture(scope="session")
def small_case(
    awake: Callable[[str], HookedModel], lite0: HookedModel, photo_paths: dict[str, Path]
) -> Callable[[str], tuple[HookedModel, Tensor, list[int], str]]:
    """A model in float64, three photographs of 64×64 px, a class each, the last layer's name."""
    known: dict[str, HookedModel] = {}

    def get(name: str) -> tuple[HookedModel, Tensor, list[int], str]:
        where, layer = SMALL.get(name, ("", "bn2"))
        origin = awake(where) if where else lite0
        classes = [3, 1, 7] if where else [282, 504, 650]  # tiger cat, coffee mug, microphone
        if name not in known:
            module = copy.deepcopy(origin.module).double()
            known[name] = HookedModel(
                module, mean=origin.mean, std=origin.std, input_size=(3, 64, 64)
            )
        photos = [photo_paths[photo] for photo in ("chelsea", "coffee", "astronaut")]
        return known[name], known[name].images(photos).double(), classes, layer

    return get


SLOW = ("vgg11", "vit_small_patch14_reg4_dinov2")
"""Architectures that take seconds where others take a fraction of one."""
SLOWER = ("densenet121", "mixer_s32_224", "cait_xxs24_224")
"""Architectures that take as long and are like others."""
REPEATED = ("channel_masks", "occlusion", "gradient_family", "perturbation_contract")
"""Test files that compare every architecture with a peer, forward by forward."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the comparisons on slow architectures; the others stay in `make test`."""
    for item in items:
        here = item.path.parent == Path(__file__).parent
        repeated = item.path.stem.removeprefix("test_") in REPEATED
        for names, mark in ((SLOW, pytest.mark.slow), (SLOWER, pytest.mark.soak)):
            if here and repeated and any(name in item.name for name in names):
                item.add_marker(mark)
