"""Guided backpropagation and deconvnet beside a slow version without autograd, layer by layer.

The network is written twice: as a module, with its rectifiers in every way that people write them,
and in NumPy as a list of steps whose Jacobian matrices are multiplied by hand.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from timmscope import HookedModel, TechniqueError, channel, class_logit, neuron, technique

Array = NDArray[np.float64]
RULES = ["guided-backprop", "deconvnet"]
TARGETS = [0, 2, 1]


def rectify(before: Array, cap: float | None) -> Array:
    return np.minimum(np.maximum(before, 0), np.inf if cap is None else cap)


def back(rule: str, gradient: Array, before: Array, cap: float | None) -> Array:
    """The two papers' rules, one number at a time."""
    found = np.zeros_like(gradient)
    for place in np.ndindex(gradient.shape):
        open_ = before[place] > 0 and (cap is None or before[place] < cap)
        if gradient[place] > 0 and (open_ or rule == "deconvnet"):
            found[place] = gradient[place]
    return found


def convolution(weight: Array, height: int, width: int) -> Array:
    """The matrix of a 3×3 convolution with zeros around, `(out·h·w, in·h·w)`."""
    out, into = weight.shape[:2]
    matrix = np.zeros((out, height, width, into, height, width))
    for o, i, y, x, dy, dx in np.ndindex(out, into, height, width, 3, 3):
        if 0 <= y + dy - 1 < height and 0 <= x + dx - 1 < width:
            matrix[o, y, x, i, y + dy - 1, x + dx - 1] = weight[o, i, dy, dx]
    return matrix.reshape(out * height * width, into * height * width)


RECTIFIERS: dict[str, tuple[Callable[[], Callable[[Tensor], Tensor]], float | None]] = {
    "nn.ReLU": (lambda: nn.ReLU(), None),
    "nn.ReLU in place": (lambda: nn.ReLU(inplace=True), None),
    "F.relu": (lambda: F.relu, None),
    "F.relu in place": (lambda: lambda x: F.relu(x, inplace=True), None),
    "torch.relu": (lambda: torch.relu, None),
    "torch.relu_": (lambda: torch.relu_, None),
    "x.relu()": (lambda: lambda x: x.relu(), None),
    "x.relu_()": (lambda: lambda x: x.relu_(), None),
    "x.clamp(min=0)": (lambda: lambda x: x.clamp(min=0), None),
    "x.clamp_(min=0)": (lambda: lambda x: x.clamp_(min=0), None),
    "x.clamp_min(0)": (lambda: lambda x: x.clamp_min(0), None),
    "nn.ReLU6": (lambda: nn.ReLU6(), 6),
    "nn.ReLU6 in place": (lambda: nn.ReLU6(inplace=True), 6),
    "F.relu6": (lambda: F.relu6, 6),
    "nn.Hardtanh(0, 6)": (lambda: nn.Hardtanh(0.0, 6.0), 6),
    "nn.Hardtanh(0, 20)": (lambda: nn.Hardtanh(0.0, 20.0), 20),
    "x.clamp(0, 6)": (lambda: lambda x: x.clamp(0, 6), 6),
}


class Network(nn.Module):
    """Three linear layers behind a convolution; the rectifier is one object, used four times.

    The second layer is skipped over before its rectifier, and the third one is the second again.
    """

    num_classes = 3

    def __init__(self, rectifier: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)
        self.middle = nn.Linear(24, 24)
        self.fc = nn.Linear(24, 3)
        self.rectifier = rectifier
        generator = torch.Generator().manual_seed(5)
        for weight in self.parameters():
            weight.data = torch.randn(weight.shape, generator=generator) * 0.7

    def forward(self, x: Tensor) -> Tensor:
        x = self.rectifier(self.conv(x)).flatten(1)
        x = self.rectifier(self.middle(x) + x)
        y = self.middle(x)
        y += x
        x = self.rectifier(y)
        x = self.rectifier(x - 1)  # zeros and sixes lie on the kinks of what follows
        return self.fc(self.rectifier(1 * x))


def by_jacobians(rule: str, module: Network, image: Array, index: int, cap: float | None) -> Array:
    """The rule's gradient `(3, 3, 4)` of one logit, from explicit Jacobians."""
    conv = convolution(module.conv.weight.detach().numpy(), 3, 4)
    shift = np.repeat(module.conv.bias.detach().numpy(), 12)
    middle, skip = module.middle.weight.detach().numpy(), np.eye(24)
    steps: list[tuple[Array, Array]] = [  # Jacobian of each step, and what it adds
        (conv, shift),
        (middle + skip, module.middle.bias.detach().numpy()),
        (middle + skip, module.middle.bias.detach().numpy()),
        (skip, -np.ones(24)),
        (skip, np.zeros(24)),
    ]
    value, inputs = image.reshape(-1), []
    for jacobian, offset in steps:
        inputs.append(jacobian @ value + offset)
        value = rectify(inputs[-1], cap)
    gradient: Array = module.fc.weight.detach().numpy()[index]
    for (jacobian, _), before in zip(reversed(steps), reversed(inputs), strict=True):
        gradient = jacobian.T @ back(rule, gradient, before, cap)
    return gradient.reshape(image.shape)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def hooked(module: nn.Module) -> HookedModel:
    return HookedModel(module.double(), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 3, 4))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", RECTIFIERS)
def test_a_rectifier_however_it_is_written_goes_back_by_the_papers_rule(name, rule, images):
    make, cap = RECTIFIERS[name]
    module = Network(make()).double()
    found = technique(rule)(reduce="sum")(hooked(module), images, class_logit(TARGETS))
    for row, index in enumerate(TARGETS):
        expected = by_jacobians(rule, module, images[row].numpy(), index, cap)
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(found.pixels[row], expected, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(found.maps[row], expected.sum(0), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("rule", RULES)
def test_a_unit_inside_goes_back_by_the_rule_as_well(rule, images):
    module = Network(nn.ReLU(inplace=True)).double()
    found = technique(rule)()(hooked(module), images, neuron("conv", 1, 2, 0))
    conv = convolution(module.conv.weight.detach().numpy(), 3, 4)
    # Nothing is rectified on the way to the first convolution: both rules give its filter.
    np.testing.assert_allclose(found.pixels[0], conv[12 + 8].reshape(3, 3, 4), rtol=1e-12)
    found = technique(rule)()(hooked(module), images, channel("middle#0", 7))
    for row in range(3):
        before = conv @ images[row].numpy().reshape(-1)
        before += np.repeat(module.conv.bias.detach().numpy(), 12)
        gradient = back(rule, module.middle.weight.detach().numpy()[7], before, None)
        expected = (conv.T @ gradient).reshape(3, 3, 4)
        np.testing.assert_allclose(found.pixels[row], expected, rtol=1e-12, atol=1e-14)


class Ends(nn.Module):
    """A convolution, some activation, pooling and a linear layer."""

    num_classes = 3

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.activation = activation
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.activation(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("rule", [*RULES, "guided-grad-cam"])
@pytest.mark.parametrize(
    ("activation", "named"),
    [
        (nn.Hardtanh(-1, 1), "1 Hardtanh"),
        (nn.GELU(), "1 GELU"),
        (nn.SiLU(), "1 SiLU"),
        (nn.LeakyReLU(0.1), "1 LeakyReLU"),
        (lambda x: F.relu(F.elu(x)), "1 ELU"),
        (lambda x: x.clamp(-1, 1), "no activation"),
        (nn.Identity(), "no activation"),
    ],
    ids=["hardtanh", "gelu", "silu", "leaky", "mixed", "clamp", "none"],
)
def test_any_other_activation_is_refused_by_its_name(rule, activation, named, images):
    with pytest.raises(TechniqueError) as caught:
        technique(rule)()(hooked(Ends(activation)), images, 1)
    assert f"Ends has {named} in this graph" in str(caught.value)
    assert str(caught.value).endswith("use saliency, smooth-grad or integrated-gradients")
    assert "\n" not in str(caught.value)
