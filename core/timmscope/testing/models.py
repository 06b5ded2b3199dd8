"""Tiny models of every layout, which run in a millisecond and can raise in the forward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from timmscope.models import HookedModel
from timmscope_registry.hooks import OwnGenerators

SIZE = 32
"""Height and width of the tiny models' images, in pixels."""
CLASSES = 10


class Tripwire(nn.Module):
    """Returns its input, but raises at a chosen call.

    Attributes:
        passed: number of calls so far.
        armed: number of the call at which to raise; 0 for never.
    """

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0
        self.armed = 0

    def forward(self, x: Tensor) -> Tensor:
        """Raise `RuntimeError` at the armed call."""
        self.passed += 1
        if self.passed == self.armed:
            raise RuntimeError("the tripwire broke the forward")
        return x


class _Tiny(nn.Module):
    num_classes = CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.tripwire = Tripwire()


class TinyCNN(_Tiny):
    """A convolutional network with batch norms, in-place ReLUs and dropout; NCHW."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(12)
        self.act2 = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, 10)`."""
        x = self.tripwire(self.act1(self.bn1(self.conv1(x))))
        x = self.act2(self.bn2(self.conv2(x)))
        logits: Tensor = self.fc(self.drop(self.pool(x).flatten(1)))
        return logits


class TinyNHWC(_Tiny):
    """A patch embedding and a residual block over `(B, h, w, C)`, the layout of Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, stride=4)
        self.norm = nn.LayerNorm(12)
        self.mix = nn.Linear(12, 12)
        self.act = nn.GELU()
        self.out = nn.Linear(12, 12)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, 10)`."""
        x = self.norm(self.patches(x).permute(0, 2, 3, 1))
        x = x + self.out(self.act(self.mix(self.tripwire(x))))
        logits: Tensor = self.fc(x.mean((1, 2)))
        return logits


class TinyViT(_Tiny):
    """A tiny vision transformer of timm, with a class token and fused attention."""

    def __init__(self) -> None:
        super().__init__()
        from timm.models.vision_transformer import VisionTransformer

        self.vit = VisionTransformer(
            img_size=SIZE, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=CLASSES
        )
        self.vit.blocks.insert(1, self.tripwire)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, 10)`."""
        logits: Tensor = self.vit(x)
        return logits


class TinyHybrid(_Tiny):
    """A convolutional stem, then attention over its positions as tokens."""

    def __init__(self) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        self.stem = nn.Conv2d(3, 16, 5, stride=4, padding=2)
        self.bn = nn.BatchNorm2d(16)
        self.act = nn.ReLU()
        self.block = Block(16, 2)
        self.norm = nn.LayerNorm(16)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, 10)`."""
        x = self.act(self.bn(self.stem(x)))
        x = self.block(self.tripwire(x).flatten(2).transpose(1, 2))
        logits: Tensor = self.fc(self.norm(x).mean(1))
        return logits


TINY: dict[str, Callable[[], nn.Module]] = {
    "cnn": TinyCNN,
    "nhwc": TinyNHWC,
    "token": TinyViT,
    "hybrid": TinyHybrid,
}
"""The models of `tiny_model`, by layout."""


def tiny_model(kind: str = "cnn") -> HookedModel:
    """Return a new tiny model for 32×32 RGB images and 10 classes, with seeded nonzero weights.

    Args:
        kind: `cnn`, `nhwc`, `token` or `hybrid`.
    """
    with OwnGenerators(seed=0):
        module = TINY[kind]()
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias, std=0.2)
                assert part.running_mean is not None
                assert part.running_var is not None
                part.running_mean.normal_(std=0.1)
                part.running_var.uniform_(0.5, 1.5)
            elif isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=part.in_features**-0.5)
                if part.bias is not None:
                    nn.init.normal_(part.bias, std=0.1)
        for name, weight in module.named_parameters():
            if "token" in name or "pos_embed" in name:
                nn.init.normal_(weight, std=0.5)
    return HookedModel(
        module.eval(), mean=(0.4,) * 3, std=(0.25,) * 3, input_size=(3, SIZE, SIZE),
        id=f"tiny:{kind}",
    )  # fmt: skip


def tiny_images(count: int = 2) -> Tensor:
    """Return seeded images `(count, 3, 32, 32)` in [0, 1]: bright rectangles on smooth noise."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    images = 0.6 * nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear")
    for row in range(count):
        top, left = 3 + 2 * (row % 5), 4 + 3 * (row % 4)
        images[row, row % 3, top : top + 12, left : left + 10] += 0.4
    return images.clamp(0, 1)
