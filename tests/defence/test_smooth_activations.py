"""Softplus takes the place of ReLU while a network runs, and the module stays as it is."""

from __future__ import annotations

import math
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from timmscope import DefenceTechnique, HookedModel, TechniqueError, ensemble, load_model
from timmscope_attack import PGD
from timmscope_defence import JPEG, SmoothActivations


class Spellings(nn.Module):
    """Returns `relu(x)` of each value, written in one of the ways that PyTorch has."""

    num_classes = 12

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.module = {"module": nn.ReLU, "in place": lambda: nn.ReLU(inplace=True)}.get(
            spelling, nn.Identity
        )()
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        x = 4 * x.flatten(1) - 2
        if self.spelling == "statement":
            x = 1 * x
            x.relu_()  # its return value is not used
            return x
        return {
            "module": self.module,
            "in place": self.module,
            "function": functional.relu,
            "torch": torch.relu,
            "method": lambda x: x.relu(),
            "clamp": lambda x: x.clamp(min=0),
            "clamp_min": lambda x: torch.clamp_min(x, 0),
            "in place function": lambda x: functional.relu(1 * x, inplace=True),
        }[self.spelling](x)


def of(module: nn.Module) -> HookedModel:
    return HookedModel(module, mean=(0,) * 3, std=(1,) * 3, input_size=(3, 2, 2))


@pytest.fixture
def pixels() -> Tensor:
    return torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "spelling",
    [
        *("module", "in place", "function", "torch", "method", "clamp", "clamp_min"),
        *("statement", "in place function"),
    ],
)
@pytest.mark.parametrize("beta", [0.5, 10.0, 1e4])
def test_every_relu_is_softplus_with_its_gradient(
    spelling: str, beta: float, pixels: Tensor
) -> None:
    bare = of(Spellings(spelling))
    x = 4 * pixels.flatten(1).double() - 2
    expected = torch.where(x * beta > 20, x, torch.log1p((beta * x).exp().clamp(max=1e300)) / beta)
    leaf = pixels.clone().requires_grad_()
    found = bare.defended([SmoothActivations(beta=beta)])(leaf)
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-6)
    (slope,) = torch.autograd.grad(found.sum(), leaf)
    wanted = 4 * torch.sigmoid(beta * x).view_as(pixels)
    assert torch.allclose(slope.double(), wanted, rtol=1e-4, atol=1e-5)
    above = found.detach() - bare(pixels)
    assert float(above.min()) >= -1e-6
    assert float(above.max()) <= math.log(2) / beta + 1e-6


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (nn.ReLU6(), lambda x: x.clamp(0, 6)),
        (nn.Hardtanh(0, 1), lambda x: x.clamp(0, 1)),
        (nn.LeakyReLU(0.2), lambda x: torch.where(x > 0, x, 0.2 * x)),
    ],
)
def test_bounded_and_leaky_relus_become_smooth_and_sharp_ones_equal_them(
    layer: nn.Module, function: object, pixels: Tensor
) -> None:
    class Scaled(nn.Module):
        num_classes = 12

        def __init__(self) -> None:
            super().__init__()
            self.act = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.act(20 * x.flatten(1) - 8)

    model = of(Scaled())
    exact = function(20 * pixels.flatten(1) - 8)  # type: ignore[operator]
    assert torch.allclose(model(pixels), exact, atol=1e-5)
    for beta in (1.0, 100.0):
        found = model.defended([SmoothActivations(beta=beta)])(pixels)
        assert float((found - exact).abs().max()) <= math.log(2) / beta + 1e-5
        assert not torch.equal(found, model(pixels))


def test_functions_that_are_no_relu_stay(pixels: Tensor) -> None:
    class Others(nn.Module):
        num_classes = 12

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            return functional.gelu(x).clamp(-1, 1) + functional.hardtanh(x) + x.clamp(min=0.2)

    model = of(Others())
    with pytest.warns(UserWarning, match="smooth-activations beta=10.0 met no ReLU"):
        found = model.defended("smooth-activations")(pixels)
    assert torch.equal(found, model(pixels))


def test_the_module_is_left_as_it_was_and_other_models_meanwhile_are_sharp(pixels: Tensor) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    model = of(network)
    before = model(pixels)
    smooth = model.defended([SmoothActivations(beta=2)])
    assert list(smooth.layers) == list(model.layers)
    assert not torch.allclose(smooth(pixels), before)
    assert torch.equal(model(pixels), before)
    assert torch.equal(network(pixels), before)
    assert smooth.weights_sha256 == model.weights_sha256
    assert smooth.activations_sha256 != model.activations_sha256
    assert [name for name, _ in network.named_modules()] == ["", "0", "1", "2", "3"]
    with smooth.record("2") as seen:
        smooth(pixels)
    hidden = network[1](pixels.flatten(1))
    assert torch.allclose(seen["2"], functional.softplus(hidden, beta=2))


def test_a_network_whose_relus_are_off_gets_a_gradient_and_can_be_attacked() -> None:
    """ReLU passes nothing at the image, because its unit is off there: the attack is stuck."""

    class Dead(nn.Module):
        num_classes = 2

        def forward(self, x: Tensor) -> Tensor:
            total = functional.relu(x.flatten(1).sum(1) - 7)
            return torch.stack([torch.full_like(total, 0.5), total], 1)

    model, grey = of(Dead()), torch.full((1, 3, 2, 2), 0.55)  # the sum is 6.6
    assert not bool(model.gradient(grey, "class:1")[1].any())
    smooth = model.defended([SmoothActivations(beta=5)])
    slope = smooth.gradient(grey, "class:1")[1]
    assert torch.allclose(
        slope, torch.sigmoid(torch.tensor(5 * (12 * 0.55 - 7))).expand(1, 3, 2, 2)
    )
    attack = PGD(epsilon=0.1, steps=5, random_start=False)
    with pytest.warns(UserWarning, match="zero gradient"):
        stuck = attack(model, grey)
    assert stuck.stuck.tolist() == [True]
    through = attack(smooth, grey).images
    assert torch.allclose(through, torch.full_like(through, 0.65))
    assert model(through).argmax(1).tolist() == [1]  # 7.8 - 7 is more than 0.5


def test_gradients_change_smoothly_where_relu_jumps(pixels: Tensor) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 3))
    model = of(network)

    def largest_jump(model: HookedModel) -> float:
        path = torch.linspace(0, 1, 400).view(-1, 1, 1, 1)
        images = pixels[:1] * (1 - path) + pixels[1:2] * path
        slopes = model.gradient(images, "class:0")[1].flatten(1)
        return float((slopes[1:] - slopes[:-1]).norm(dim=1).max())

    assert largest_jump(model) > 20 * largest_jump(model.defended("smooth-activations beta=5"))


def test_members_of_an_ensemble_and_a_call_run_smoothed(pixels: Tensor) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    model = of(network)
    smooth = model.defended([SmoothActivations(beta=3)])
    both = ensemble([model, smooth])
    assert torch.allclose(both(pixels), (model(pixels) + smooth(pixels)) / 2, atol=1e-6)
    shown = SmoothActivations(beta=0.2)(model, pixels)
    behind = model.defended([SmoothActivations(beta=0.2)])(pixels).softmax(1).amax(1)
    assert torch.allclose(shown.confidence_after, behind)
    assert torch.equal(shown.images, pixels)
    together = model.defended([SmoothActivations(beta=3), JPEG(quality=50)])
    assert not torch.equal(together(pixels), smooth(pixels))


def test_copies_for_speed_are_smoothed_too() -> None:
    model = load_model(
        "random:test_resnet?seed=0&img_size=32", defences=["smooth-activations beta=4"]
    )
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model.fused()(images), model(images), atol=1e-4)
    assert not torch.allclose(model.defended(())(images), model(images), atol=1e-3)


def test_a_defence_that_returns_no_context_is_named(pixels: Tensor) -> None:
    class Wrong(DefenceTechnique):
        """Returns a number around the network."""

        def transform(self, images, generators):
            return images

        def around_network(self):
            return 3

    class Around(Wrong):
        """Returns a context."""

        def around_network(self):
            return nullcontext()

    model = of(Spellings("module"))
    with pytest.raises(TechniqueError, match="returned an int around the network; expected a c"):
        model.defended([Wrong()])(pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(model.defended([Around()])(pixels), model(pixels))
