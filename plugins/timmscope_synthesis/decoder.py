"""The networks of `decoder-training`: a decoder from codes to images, an encoder, and a critic.

The decoder has the layout of Dosovitskiy & Brox (NeurIPS 2016), scaled down: linear layers, then
convolutions between steps that double the image, with LeakyReLU. Doubling by nearest neighbours
leaves no checkerboard, as transposed convolutions do.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

SLOPE = 0.2
"""Slope of LeakyReLU below 0."""
SMALLEST_PX = 4
"""Side of the image after the linear layers, at least."""
WIDEST = 8
"""Most channels of a layer, relative to the last one before the image."""
DEVIATIONS = 3.0
"""Bounds of a code that was learned or drawn, in standard deviations."""
R1_WEIGHT = 10.0
"""Weight of the critic's squared gradient at images (Mescheder, Geiger & Nowozin, ICML 2018)."""
_EPSILON = 1e-5
_MOMENTUM = 0.1


class Standardise(nn.Module):
    """Gives each unit of codes `(B, n)` mean 0 and variance 1 over the images trained on.

    Args:
        length: number of units n.
        fixed: whether the encoder is fixed, so that the moments are those of all images seen; those
            of an encoder in training follow it.
    """

    mean: Tensor
    variance: Tensor
    lowest: Tensor
    highest: Tensor
    count: Tensor

    def __init__(self, length: int, *, fixed: bool) -> None:
        super().__init__()
        self.fixed = fixed
        self.register_buffer("mean", torch.zeros(length))
        self.register_buffer("variance", torch.ones(length))
        self.register_buffer("lowest", torch.zeros(length))
        self.register_buffer("highest", torch.zeros(length))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, codes: Tensor) -> Tensor:
        """Return the codes by the moments of the batch in training, else of all images."""
        if not self.training or len(codes) < 2:
            return self._by(codes, self.mean, self.variance)
        mean, variance = codes.mean(0), codes.var(0)
        with torch.no_grad():
            self.count += 1
            share = 1 / int(self.count)
            if not self.fixed:
                share = max(share, _MOMENTUM)
            self.mean.lerp_(mean.to(self.mean), share)
            self.variance.lerp_(variance.to(self.variance), share)
            torch.minimum(self.lowest, codes.amin(0).to(self.lowest), out=self.lowest)
            torch.maximum(self.highest, codes.amax(0).to(self.highest), out=self.highest)
        return self._by(codes, mean, variance)

    @property
    def extremes(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest value of each unit, standardised, `(n,)` each."""
        return (
            self._by(self.lowest, self.mean, self.variance),
            self._by(self.highest, self.mean, self.variance),
        )

    @staticmethod
    def _by(codes: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return (codes - mean) / (variance + _EPSILON).sqrt()


class Decoder(nn.Module):
    """Makes images `(B, C, H, W)` in [0, 1] of codes `(B, n)`, whose units have mean 0, variance 1.

    Args:
        code_length: number of units n of a code.
        image_size: channels, height and width of the images.
        width: channels before the last convolution.
        encoder: network that learns to encode, if the code is not that of a fixed model.
        critic: network that learns to tell images from decoded ones, if there is one.
        standardise: what comes before the encoder, or is the whole code of a fixed model.
    """

    def __init__(
        self,
        code_length: int,
        image_size: tuple[int, int, int],
        width: int,
        *,
        encoder: nn.Module | None = None,
        critic: nn.Module | None = None,
        standardise: Standardise | None = None,
    ) -> None:
        super().__init__()
        self.code_length = code_length
        self.image_size = image_size
        self.encoder, self.critic, self.standardise = encoder, critic, standardise
        sizes = halved(image_size[1:])
        widths = [min(2**level, WIDEST) * width for level in range(len(sizes))]
        hidden, (height, breadth) = WIDEST * width, sizes[-1]
        layers: list[nn.Module] = [
            nn.Linear(code_length, hidden),
            nn.LeakyReLU(SLOPE),
            nn.Linear(hidden, widths[-1] * height * breadth),
            nn.LeakyReLU(SLOPE),
            nn.Unflatten(1, (widths[-1], height, breadth)),
        ]
        for level in reversed(range(len(sizes) - 1)):
            layers += [
                nn.Upsample(sizes[level], mode="nearest"),
                nn.Conv2d(widths[level + 1], widths[level], 3, padding=1),
                nn.LeakyReLU(SLOPE),
            ]
        layers.append(nn.Conv2d(width, image_size[0], 3, padding=1))
        self.layers = nn.Sequential(*layers)
        start_weights(self.layers)

    def forward(self, code: Tensor) -> Tensor:
        """Return images `(B, C, H, W)` in [0, 1].

        Args:
            code: `(B, n)`.
        """
        images: Tensor = self.layers(code).sigmoid()
        return images

    def code_bounds(self) -> tuple[Tensor, Tensor]:
        """Return the lowest and the highest value of each unit of a code, `(n,)` each.

        For the code of a fixed model's layer they are those of the images trained on; for others,
        three standard deviations.
        """
        known = self.standardise
        if known is not None and self.encoder is None:
            return known.extremes
        most = torch.full((self.code_length,), DEVIATIONS, device=next(self.parameters()).device)
        return -most, most


def halved(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return a size and its halves, down to a shorter side of 4 to 7."""
    sizes = [size]
    while min(sizes[-1]) >= 2 * SMALLEST_PX:
        height, width = sizes[-1]
        sizes.append((math.ceil(height / 2), math.ceil(width / 2)))
    return sizes


def image_encoder(image_size: tuple[int, int, int], width: int, outputs: int) -> nn.Sequential:
    """Make a network from images to `(B, outputs)`, the decoder's layout the other way round."""
    sizes = halved(image_size[1:])
    widths = [min(2**level, WIDEST) * width for level in range(len(sizes))]
    layers: list[nn.Module] = [nn.Conv2d(image_size[0], width, 3, padding=1), nn.LeakyReLU(SLOPE)]
    for level in range(1, len(sizes)):
        layers += [
            nn.Conv2d(widths[level - 1], widths[level], 3, stride=2, padding=1),
            nn.LeakyReLU(SLOPE),
        ]
    layers += [nn.Flatten(), nn.Linear(widths[-1] * math.prod(sizes[-1]), outputs)]
    return start_weights(nn.Sequential(*layers))


def vector_encoder(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Make a network from the pooled activation of a layer to `(B, outputs)`."""
    hidden = WIDEST * width
    return start_weights(
        nn.Sequential(nn.Linear(inputs, hidden), nn.LeakyReLU(SLOPE), nn.Linear(hidden, outputs))
    )


def adversarial_terms(critic: nn.Module, images: Tensor, decoded: Tensor) -> dict[str, Tensor]:
    """Return the critic's loss with its penalty, and the decoder's loss before that critic."""
    real = images.detach().clone().requires_grad_()
    opinions = critic(real)
    (gradient,) = torch.autograd.grad(opinions.sum(), real, create_graph=True)
    penalty = 0.5 * R1_WEIGHT * gradient.square().sum((1, 2, 3)).mean()
    wrong = functional.softplus(critic(decoded.detach())).mean()
    missed = functional.softplus(-opinions).mean()
    frozen = {name: weight.detach() for name, weight in critic.named_parameters()}
    seen = torch.func.functional_call(critic, frozen, (decoded,))
    return {
        "critic": wrong + missed + penalty,
        "deception": functional.softplus(-seen).mean(),
    }


def start_weights(network: nn.Sequential) -> nn.Sequential:
    """Draw the first weights so that values keep their size through the layers (He et al. 2015)."""
    for layer in network:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, SLOPE)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    last = network[-1]
    assert isinstance(last, nn.Linear | nn.Conv2d)
    with torch.no_grad():  # begin near grey, near one code and near no opinion
        last.weight.mul_(0.1)
    return network


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images at another size: means of areas where it is smaller, else bilinear."""
    if tuple(images.shape[2:]) == tuple(size):
        return images
    smaller = size[0] <= images.shape[2] and size[1] <= images.shape[3]
    mode = "area" if smaller else "bilinear"
    corners = None if smaller else False
    return functional.interpolate(images, size, mode=mode, align_corners=corners)
