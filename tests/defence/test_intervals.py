"""Interval bounds against corners in float64, analytic oracles, and points inside the box."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from timmscope import HookedModel, ParameterError, TechniqueError, UnsupportedModel, load_model
from timmscope_defence import IntervalBounds
from timmscope_defence.intervals import Interval, lowest_margins


def box(shape: tuple[int, ...], radius: float = 0.2, seed: int = 0) -> Interval:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(shape, generator=generator, dtype=torch.float64)
    return Interval.of(centre, radius * torch.rand(shape, generator=generator, dtype=torch.float64))


def inside(given: Interval, count: int) -> Tensor:
    """Random points of a box of one row, and as many random corners of it."""
    generator = torch.Generator().manual_seed(1)
    share = 2 * torch.rand(count, *given.shape[1:], generator=generator, dtype=torch.float64) - 1
    return given.centre + torch.cat([share, share.sign()]) * given.radius


def corner_bounds(weight: np.ndarray, bias: np.ndarray, low: np.ndarray, high: np.ndarray):
    """Smallest and largest value of each row of `W x + b` over a box, by all corners."""
    values = [weight @ np.array(x) + bias for x in itertools.product(*zip(low, high, strict=True))]
    return np.min(values, 0), np.max(values, 0)


def test_affine_layers_equal_all_corners() -> None:
    layer, given = nn.Linear(9, 4, dtype=torch.float64), box((1, 9))
    low, high = (end[0].numpy() for end in given.bounds)
    expected = corner_bounds(layer.weight.detach().numpy(), layer.bias.detach().numpy(), low, high)
    found = layer(given).bounds
    for end, wanted in zip(found, expected, strict=True):
        assert torch.allclose(end[0], torch.from_numpy(wanted), atol=1e-12)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.Conv2d(2, 4, 2, groups=2, bias=False),
        nn.ConvTranspose2d(2, 3, 2, stride=2),
        nn.AvgPool2d(2, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.ZeroPad2d(1),
        nn.ReflectionPad2d(1),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Flatten(),
        nn.BatchNorm2d(2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_linear_layers_equal_their_matrix(layer: nn.Module) -> None:
    layer = layer.double().eval()
    if isinstance(layer, nn.BatchNorm2d):
        layer.running_mean += 0.3
        layer.running_var *= 4
        layer.weight.data[0] = -2
    given = box((1, 2, 3, 3))
    with torch.no_grad():
        zero = layer(torch.zeros(1, 2, 3, 3, dtype=torch.float64))
        columns = torch.eye(18, dtype=torch.float64).view(18, 2, 3, 3)
        matrix = (layer(columns) - zero).flatten(1).T
        found = layer(given)
    centre = matrix @ given.centre.flatten() + zero.flatten()
    radius = matrix.abs() @ given.radius.flatten()
    assert torch.allclose(found.centre.flatten(), centre, atol=1e-12)
    assert torch.allclose(found.radius.flatten(), radius, atol=1e-12)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(0.1), nn.LeakyReLU(-0.5), nn.ELU(),
        nn.SELU(), nn.CELU(), nn.Sigmoid(), nn.Tanh(), nn.Hardtanh(), nn.Hardsigmoid(),
        nn.Softplus(), nn.GELU(), nn.SiLU(inplace=True), nn.Hardswish(), nn.Mish(),
    ],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_activations_equal_a_dense_search(layer: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    centre = 3 * torch.randn(200, generator=generator, dtype=torch.float64)
    given = Interval.of(centre, 2 * torch.rand(200, generator=generator, dtype=torch.float64))
    share = torch.linspace(-1, 1, 20_001, dtype=torch.float64)[:, None]
    values = layer((given.centre + share * given.radius).clone())
    lower, upper = layer(given).bounds
    assert bool((lower <= values.amin(0) + 1e-12).all())
    assert bool((upper >= values.amax(0) - 1e-12).all())
    assert torch.allclose(lower, values.amin(0), atol=1e-4)  # between points of the search
    assert torch.allclose(upper, values.amax(0), atol=1e-4)
    assert bool((given.centre == centre).all()), "in place"


def test_products_and_sums_of_boxes_equal_their_corners() -> None:
    one, other = box((50,), 1.0, seed=1), box((50,), 1.0, seed=2)
    corners = torch.stack([a * b for a in one.bounds for b in other.bounds])
    assert torch.allclose((one * other).bounds[0], corners.amin(0))
    assert torch.allclose((one * other).bounds[1], corners.amax(0))
    for found, low, high in (
        (one + other, one.bounds[0] + other.bounds[0], one.bounds[1] + other.bounds[1]),
        (one - other, one.bounds[0] - other.bounds[1], one.bounds[1] - other.bounds[0]),
        (1 - one, 1 - one.bounds[1], 1 - one.bounds[0]),
        (one * -2, -2 * one.bounds[1], -2 * one.bounds[0]),
        (one / 4 + 1, one.bounds[0] / 4 + 1, one.bounds[1] / 4 + 1),
        (torch.cat([one, other])[50:], *other.bounds),
    ):
        assert torch.allclose(found.bounds[0], low)
        assert torch.allclose(found.bounds[1], high)


class Excited(nn.Module):
    """Convolution, batch normalisation, squeeze-and-excite, skip, pooling, linear."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.gate = nn.Conv2d(4, 4, 1)
        self.act = nn.SiLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.norm(self.conv(x)))
        h = h * self.gate(h.mean((2, 3), keepdim=True)).sigmoid() + x
        return self.fc(self.pool(h).flatten(1))


def test_points_of_a_box_stay_within_its_bounds_which_grow_with_it() -> None:
    network = Excited().double().eval()
    images = torch.rand(1, 1, 4, 4, dtype=torch.float64)
    last = torch.zeros(1, 3, dtype=torch.float64)
    with torch.no_grad():
        for epsilon in (0.0, 0.01, 0.05, 0.2):
            given = Interval.around(images, epsilon)
            found = network(given)
            values = network(inside(given, 5000))
            assert bool((values >= found.bounds[0] - 1e-12).all())
            assert bool((values <= found.bounds[1] + 1e-12).all())
            margins = lowest_margins(found, torch.tensor([1]))
            assert bool((values[:, 1:2] - values >= margins - 1e-12).all())
            assert bool((found.radius >= last - 1e-12).all())
            last = found.radius
            if epsilon == 0:
                assert torch.allclose(found.centre, network(images), atol=1e-12)
                assert float(found.radius.max()) < 1e-12


def test_margins_of_a_linear_layer_are_exact_and_tighter_than_those_of_its_outputs() -> None:
    layer, given = nn.Linear(6, 4, dtype=torch.float64), box((5, 6))
    labels = torch.tensor([2, 0, 3, 2, 1])
    with torch.no_grad():
        logits = layer(given)
        found = lowest_margins(logits, labels)
        loose = lowest_margins(Interval.of(logits.centre, logits.radius), labels)
        for row, label in enumerate(labels.tolist()):
            weight = layer.weight[label] - layer.weight
            low, high = (end[row] for end in given.bounds)
            exact = weight.clamp(min=0) @ low + weight.clamp(max=0) @ high
            exact = exact + layer.bias[label] - layer.bias
            assert torch.allclose(found[row], exact, atol=1e-12)
    assert bool((loose <= found + 1e-12).all())
    assert bool((loose < found - 1e-3).any())


def test_bounds_have_the_gradient_of_finite_differences() -> None:
    network = Excited().double().eval()
    images = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    labels = torch.tensor([0, 2])

    def total(weight: Tensor) -> Tensor:
        changed = {"conv.weight": weight}
        logits = torch.func.functional_call(network, changed, (Interval.around(images, 0.05),))
        return lowest_margins(logits, labels).sum()

    weight = network.conv.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(total, (weight,), eps=1e-6, atol=1e-5)


def linear_model() -> HookedModel:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    module.num_classes = 3
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([[1.0, -1, 0, 2], [0, 1, 1, 0], [-1, 0, 2, 1]]))
        module[1].bias.zero_()
    return HookedModel(module, mean=(0.5,), std=(0.25,), input_size=(1, 2, 2))


def test_a_linear_model_gets_the_radius_computed_by_hand() -> None:
    images = torch.full((1, 1, 2, 2), 0.5)
    images[0, 0, 1, 1] = 0.9
    model = linear_model()
    # Logits 3.2, 0, 1.6. A change of ε takes at most 4 ε times the sum of the weights' difference:
    # 1 + 2 + 1 + 2 = 6 from the first to the second class, 2 + 1 + 2 + 1 = 6 to the third.
    border = 1.6 / (4 * 6)
    tried = (0.9 * border, 0.999 * border, 1.001 * border)
    found = IntervalBounds(epsilons=tried)(model, images)
    assert int(found.predictions) == 0
    assert float(found.radius) == pytest.approx(0.999 * border)
    assert found.notes["margin"][0] == pytest.approx(0.1 * 1.6, abs=1e-5)
    assert found.norm == "linf"
    assert found.forwards.tolist() == [4]
    assert float(IntervalBounds(epsilons=(1.001 * border,))(model, images).radius) == 0


def test_changed_images_stay_in_0_1() -> None:
    images = torch.tensor([1.0, 0, 0, 1]).view(1, 1, 2, 2)
    # Every weight pushes outwards for the first class, so its margin cannot fall that way.
    found = IntervalBounds(epsilons=(0.2, 1.0))(linear_model(), images)
    lower, upper = Interval.around(images, 0.2).bounds
    assert (float(lower.min()), float(upper.max())) == (0.0, 1.0)
    low, high = lower.flatten(), upper.flatten()
    weight = linear_model().module[1].weight.detach()
    exact = min(
        float(((weight[0] - weight[j]).clamp(min=0) * low
               + (weight[0] - weight[j]).clamp(max=0) * high).sum() * 4
              - 2 * (weight[0] - weight[j]).sum())
        for j in (1, 2)
    )  # fmt: skip
    assert found.notes["margin"][0] == pytest.approx(exact, abs=1e-5)


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    module.num_classes = 3
    model = HookedModel(module.eval(), mean=(0.5,), std=(0.5,), input_size=(1, 4, 4))
    images = torch.rand(7, 1, 4, 4)
    technique = IntervalBounds(epsilons=(0.001, 0.003, 0.01, 0.03))
    whole = technique(model, images)
    assert len(whole.radius.unique()) >= 2
    for size in (1, 3):
        split = technique(model, images, batch_size=size)
        assert torch.equal(split.radius, whole.radius)
        assert torch.equal(split.forwards, whole.forwards)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("random:vit_tiny_patch16_224?img_size=32", "interval bounds do not reach through"),
        ("random:convnext_atto?img_size=32", "interval bounds do not reach through"),
    ],
)
def test_layers_without_bounds_are_refused_by_name(name: str, shown: str) -> None:
    model = load_model(name)
    with pytest.raises(UnsupportedModel, match=shown):
        IntervalBounds()(model, torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv3_small_050", "efficientnet_lite0", "densenet121"]
)
def test_convolutional_networks_are_reached(name: str) -> None:
    """In float64, so that the bounds of a box of no size are its values."""
    model = load_model(f"random:{name}?img_size=64&num_classes=5")
    module = model.module.double().eval()
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        narrow, wide = (module(Interval.around(images, epsilon)) for epsilon in (0.0, 0.01))
        expected = module(images)
    assert torch.allclose(narrow.centre, expected, atol=1e-9)
    assert float(narrow.radius.max()) < 1e-6
    assert bool(((wide.bounds[0] < expected) & (expected < wide.bounds[1])).all())


def test_functions_and_defended_models_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="is behind defences"):
        IntervalBounds()(linear_model().defended("jpeg"), torch.rand(1, 1, 2, 2))
    model = HookedModel.of_function(
        lambda images: images.flatten(1)[:, :3], outputs="logits", input_size=(1, 2, 2),
        num_classes=3, id="f:1",
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match="is a prediction function"):
        IntervalBounds()(model, torch.rand(1, 1, 2, 2))


def test_networks_in_train_mode_are_refused() -> None:
    images = Interval.around(torch.rand(2, 1, 4, 4), 0.1)
    for module in (nn.BatchNorm2d(1).train(), nn.Dropout(0.5).train()):
        with pytest.raises(UnsupportedModel, match="put the network into eval mode"):
            module(images)


@pytest.mark.parametrize("wrong", [(), (0.0,), (1.5,), (float("nan"),)])
def test_radii_that_are_none_are_refused(wrong: tuple[float, ...]) -> None:
    with pytest.raises(ParameterError, match="expected radii in pixel units"):
        IntervalBounds(epsilons=wrong)


class InPlace(nn.Module):
    """A block whose shortcut is changed in place, and so are a part of it and the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(144, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.before(x)
        part = x[:, :2]
        part.mul_(-1.5)
        out = self.after(nn.functional.relu(x, inplace=True))
        out += x
        logits: Tensor = self.last(out.flatten(1))
        logits.neg_()
        return logits


def test_functions_that_work_in_place_change_what_shares_memory() -> None:
    torch.manual_seed(0)
    network, images = InPlace(), torch.rand(2, 3, 8, 8)
    exact = network(images.clone())
    with torch.no_grad():
        point, box = network(Interval.around(images, 0)), network(Interval.around(images, 0.05))
    torch.testing.assert_close(point.centre, exact)
    assert float(point.radius.max()) == 0
    changed = (images + 0.05 * torch.randn_like(images).sign()).clamp(0, 1)
    low, high = box.bounds
    values = network(changed)
    assert bool(((low <= values) & (values <= high)).all())
    assert box.last is None
    with_gradient = network(Interval.around(images, 0.05))
    with_gradient.radius.sum().backward()
    assert all(each.grad is not None for each in (network.before.weight, network.last.weight))


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x * 2


class Compiled(nn.Module):
    """A linear layer and what a compiled function makes, beside a shortcut or alone."""

    num_classes = 3

    def __init__(self, shortcut: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x.flatten(1))
        return h + scripted(h) if self.shortcut else scripted(h)


@pytest.mark.parametrize(
    ("shortcut", "error", "words"),
    [(True, TechniqueError, "are not finite"), (False, UnsupportedModel, "takes tensors only")],
)
def test_compiled_functions_are_never_taken_for_exact(shortcut, error, words) -> None:
    model = HookedModel(Compiled(shortcut), mean=(0.5,), std=(0.5,), input_size=(1, 2, 2))
    with pytest.raises(error, match=words):
        IntervalBounds()(model, torch.rand(1, 1, 2, 2))


# Linear bounds, by auto_LiRPA


class Lines:
    """Stands for auto_LiRPA: exact bounds of one linear layer, which CROWN has for it too."""

    class PerturbationLpNorm:
        def __init__(self, norm: float, x_L: Tensor, x_U: Tensor) -> None:
            self.norm, self.ends = norm, (x_L, x_U)

    class BoundedTensor:
        def __init__(self, x: Tensor, box: object) -> None:
            self.x, self.box = x, box

    class BoundedModule:
        def __init__(self, network: nn.Module, example: Tensor, device: object) -> None:
            self.layer, self.methods = network[1], []

        def compute_bounds(self, *, x, C, method, bound_upper):
            assert method in ("CROWN-IBP", "backward")
            low, high = (end.flatten(1)[..., None] for end in x[0].box.ends)
            rows, bias = C @ self.layer.weight, (C @ self.layer.bias)[..., None]
            least = torch.minimum(rows * low.mT, rows * high.mT).sum(-1, keepdim=True)
            return (least + bias)[..., 0], None


@pytest.mark.parametrize("method", ["crown-ibp", "crown"])
def test_linear_bounds_get_the_network_its_box_and_the_differences(monkeypatch, method) -> None:
    monkeypatch.setitem(sys.modules, "auto_LiRPA", Lines)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    model = HookedModel(network, mean=(0.3,) * 3, std=(0.5, 1, 2), input_size=(3, 2, 2))
    images = torch.rand(20, 3, 2, 2)
    radii = tuple(np.linspace(0.01, 0.9, 40).tolist())
    by_intervals = IntervalBounds(epsilons=radii)(model, images)  # exact for one linear layer
    found = IntervalBounds(epsilons=radii, method=method)(model, images)
    assert torch.equal(found.radius, by_intervals.radius)
    assert len(found.radius.unique()) > 3
    assert found.notes["margin"] == pytest.approx(by_intervals.notes["margin"], abs=1e-5)
    assert all(weight.requires_grad for weight in network.parameters())


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (None, r"auto_LiRPA, which is not installed: python -m pip install appdirs .*auto_LiRPA"),
        (object(), r"auto_LiRPA has no bounds by crown for module:Sequential: .*BoundedModule"),
    ],
)
def test_crown_without_a_usable_library_is_one_line(monkeypatch, module, words) -> None:
    monkeypatch.setitem(sys.modules, "auto_LiRPA", module)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    model = HookedModel(network, mean=(0.3,) * 3, std=(0.5,) * 3, input_size=(3, 2, 2))
    error = ParameterError if module is None else UnsupportedModel
    with pytest.raises(error, match=words) as caught:
        IntervalBounds(method="crown")(model, torch.rand(2, 3, 2, 2))
    assert "\n" not in str(caught.value)


def test_auto_lirpa_has_our_intervals_and_crown_proves_more() -> None:
    pytest.importorskip("auto_LiRPA", reason="install auto_LiRPA to compare with it")
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)),
    ).eval()
    images, radius = torch.rand(20, 1, 8, 8), 0.02
    low, high = (images - radius).clamp(min=0), (images + radius).clamp(max=1)
    given = BoundedTensor(images, PerturbationLpNorm(norm=torch.inf, x_L=low, x_U=high))
    with torch.no_grad():
        theirs = BoundedModule(network, images).compute_bounds(x=(given,), method="IBP")
        ours = network(Interval.around(images, radius)).bounds
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    model = HookedModel(network, mean=(0,), std=(1,), input_size=(1, 8, 8))
    margins = [
        torch.tensor(
            IntervalBounds(epsilons=(0.002,), method=method)(model, images).notes["margin"]
        )
        for method in ("ibp", "crown-ibp", "crown")
    ]
    assert bool((margins[0] <= margins[1] + 1e-6).all())
    assert bool((margins[1] <= margins[2] + 1e-6).all())
    assert float(margins[2].mean()) > float(margins[0].mean()) + 1e-3
