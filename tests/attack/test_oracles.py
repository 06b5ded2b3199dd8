"""Attacks on linear models, where the best change is known, and a slow second implementation."""

from __future__ import annotations

import math

import pytest
import torch
from tests.attack.conftest import TwoClasses, distances
from torch import Tensor

from timmscope import HookedModel, technique

FGSM = technique("fgsm")
PGD = technique("pgd")


def test_fgsm_does_the_most_a_linear_model_allows(plane, images):
    images = images.double()
    weight = plane.module.weight.detach()
    before = plane(images)[:, 1]
    for epsilon in (0.001, 0.01, 0.1):
        result = FGSM(epsilon=epsilon)(plane, images)
        change = (plane(result.images)[:, 1] - before).abs()
        assert torch.allclose(change, epsilon * weight.abs().sum().expand(8), rtol=1e-9)
        rivals = (2 * torch.rand(64, *images.shape[1:], dtype=torch.float64) - 1) * epsilon
        moved = ((images[:, None] + rivals).flatten(2) @ weight + plane.module.bias).detach()
        assert bool(((moved - before[:, None]).abs() <= change[:, None]).all())


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_model_flips_exactly_beyond_its_distance(attack, norm, plane, images):
    images = images.double()
    l2, linf = distances(plane, images)
    for row, distance in enumerate((l2 if norm == "l2" else linf).tolist()):
        image = images[row : row + 1]
        for factor, flips in ((0.999, False), (1.001, True)):
            settings = {"norm": norm, "epsilon": distance * factor}
            if attack == "pgd":
                settings |= {"steps": 10, "random_start": False}
            result = technique(attack)(**settings)(plane, image)
            assert result.success.tolist() == [flips]


def test_the_change_of_an_l2_attack_is_parallel_to_the_normal(plane, images):
    result = PGD(norm="l2", epsilon=0.05, steps=5)(plane, images.double())
    change = (result.images - result.originals).flatten(1)
    normal = plane.module.weight.detach()
    cosine = (change @ normal).abs() / (change.norm(dim=1) * normal.norm())
    assert float(cosine.min()) > 0.9  # the random start leaves a remainder
    exact = PGD(norm="l2", epsilon=0.05, steps=5, random_start=False)(plane, images.double())
    change = (exact.images - exact.originals).flatten(1)
    assert torch.allclose(change.norm(dim=1), torch.tensor(0.05).double(), rtol=1e-9)


def slow_pgd(model, image, label, *, target, norm, epsilon, step, steps) -> Tensor:
    """PGD of one image, value by value, with numbers for gradients."""
    origin = image.flatten().tolist()
    current = list(origin)
    shape = image.shape
    for _ in range(steps):
        slopes = []
        here = torch.tensor(current, dtype=torch.float64)

        def loss(values: Tensor) -> float:
            logits = model(values.view(1, *shape))[0].tolist()
            total = math.log(sum(math.exp(value) for value in logits))
            wanted = label if target is None else target
            return (total - logits[wanted]) * (1 if target is None else -1)

        for place in range(len(current)):
            up, down = here.clone(), here.clone()
            up[place] += 1e-6
            down[place] -= 1e-6
            slopes.append((loss(up) - loss(down)) / 2e-6)
        if norm == "linf":
            moves = [math.copysign(step, slope) for slope in slopes]
        else:
            length = math.sqrt(sum(slope**2 for slope in slopes))
            moves = [step * slope / length for slope in slopes]
        changes = [now + move - was for now, move, was in zip(current, moves, origin, strict=True)]
        if norm == "linf":
            changes = [min(max(change, -epsilon), epsilon) for change in changes]
        else:
            length = math.sqrt(sum(change**2 for change in changes))
            changes = [change * min(1, epsilon / length) for change in changes]
        current = [min(max(was + ch, 0.0), 1.0) for was, ch in zip(origin, changes, strict=True)]
    return torch.tensor(current, dtype=torch.float64).view(shape)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_follows_a_slow_implementation(norm, targeted, curved, images):
    curved.module.double()
    images = images[:2].double()
    images[0, 0, 0] = torch.tensor([0.0, 1.0, 0.001, 0.999])  # the box matters too
    labels = curved(images).argmax(1)
    targets = (labels + 1) % 4 if targeted else None
    epsilon = 0.03 if norm == "linf" else 0.2
    settings = {"norm": norm, "epsilon": epsilon, "steps": 6, "step_size": epsilon / 2}
    result = PGD(random_start=False, **settings)(curved, images, labels, targets=targets)
    for row in range(2):
        expected = slow_pgd(
            curved,
            images[row],
            int(labels[row]),
            target=int(targets[row]) if targeted else None,
            norm=norm,
            epsilon=epsilon,
            step=epsilon / 2,
            steps=6,
        )
        assert torch.allclose(result.images[row], expected, atol=1e-6)


def test_the_margin_moves_where_the_softmax_is_saturated(images):
    module = TwoClasses()
    model = HookedModel(module, mean=(0,) * 3, std=(1,) * 3, input_size=(3, 4, 4))
    with torch.no_grad():
        module.weight.mul_(1e4)
        module.bias.copy_(-(images[:1].flatten(1) @ module.weight)[0] + 2000)
    settings = {"epsilon": 0.05, "steps": 5, "random_start": False}
    stuck = PGD(**settings)(model, images[:1])
    assert torch.equal(stuck.images, images[:1])  # the cross-entropy's gradient is 0 in float32
    assert PGD(loss="margin", **settings)(model, images[:1]).success.tolist() == [True]
