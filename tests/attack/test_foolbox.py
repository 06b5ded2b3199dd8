"""FGSM and PGD return foolbox's images to the last bit."""

from __future__ import annotations

import warnings

import foolbox
import pytest
import torch
from torch import nn

from timmscope import HookedModel, load_model, technique

FGSM = technique("fgsm")
PGD = technique("pgd")

NAMES = [("fgsm", "linf"), ("fgsm", "l2"), ("pgd", "linf"), ("pgd", "l2")]
EPSILONS = {"linf": 4 / 255, "l2": 0.5}


@pytest.fixture(scope="module")
def labelled(lite0):
    """Six of foolbox's own ImageNet photographs that lite0 classifies as labelled."""
    peer = foolbox.PyTorchModel(lite0.as_module(), bounds=(0, 1), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images, labels = foolbox.samples(peer, dataset="imagenet", batchsize=20)
    right = lite0(images).argmax(1) == labels
    assert int(right.sum()) == 17
    return images[right][:6], labels[right][:6]


class Small(nn.Module):
    num_classes = 5

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
        )
        for weight in self.parameters():
            weight.data = torch.randn(weight.shape, generator=generator) / 4

    def forward(self, x):
        return self.body(x)


def peer_attack(name, norm, epsilon, targeted):
    """foolbox's attack; its fast gradient attacks take no targets, so one step of PGD does."""
    attacks = foolbox.attacks
    if name == "fgsm" and not targeted:
        fast = attacks.LinfFastGradientAttack if norm == "linf" else attacks.L2FastGradientAttack
        return fast(random_start=False)
    steps, step = (1, epsilon) if name == "fgsm" else (8, 2.5 * epsilon / 8)
    iterated = attacks.LinfPGD if norm == "linf" else attacks.L2PGD
    return iterated(steps=steps, abs_stepsize=step, random_start=False)


def ours_and_theirs(model, images, labels, targets, name, norm, epsilon):
    peer = foolbox.PyTorchModel(model.as_module(), bounds=(0, 1), device="cpu")
    goal = labels if targets is None else foolbox.criteria.TargetedMisclassification(targets)
    attack = peer_attack(name, norm, epsilon, targets is not None)
    theirs = attack.run(peer, images, goal, epsilon=epsilon)
    if name == "fgsm":
        ours = FGSM(norm=norm, epsilon=epsilon)
    else:
        ours = PGD(norm=norm, epsilon=epsilon, steps=8, random_start=False)
    return ours(model, images, labels, targets=targets), theirs


@pytest.mark.parametrize(("name", "norm"), NAMES)
def test_a_tiny_model_is_attacked_as_foolbox_does(name, norm):
    model = HookedModel(Small(), mean=(0.4,) * 3, std=(0.3,) * 3, input_size=(3, 6, 6))
    images = torch.rand(16, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    images[0], images[1] = images[0].round(), 1.0  # at the edges of the box
    labels = model(images).argmax(1)
    for targets in (None, (labels + 1) % 5):
        for epsilon in (0.01, 0.3):
            result, theirs = ours_and_theirs(model, images, labels, targets, name, norm, epsilon)
            assert float((result.images - theirs).abs().max()) == 0.0


@pytest.mark.parametrize(("name", "norm"), NAMES)
def test_real_weights_on_foolbox_photographs_are_attacked_as_foolbox_does(
    name, norm, lite0, labelled
):
    images, labels = labelled
    images, labels = images[:2], labels[:2]
    for targets in (None, (labels + 100) % 1000):
        result, theirs = ours_and_theirs(lite0, images, labels, targets, name, norm, EPSILONS[norm])
        assert float((result.images - theirs).abs().max()) == 0.0
        peer = lite0(theirs).argmax(1)
        assert torch.equal(result.success, peer != labels if targets is None else peer == targets)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_transformers_are_attacked_as_foolbox_does(name, norm):
    model = load_model(f"random:{name}?img_size=64&num_classes=10")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    labels = model(images).argmax(1)
    result, theirs = ours_and_theirs(model, images, labels, None, "pgd", norm, EPSILONS[norm])
    assert float((result.images - theirs).abs().max()) == 0.0


def test_pgd_breaks_every_photograph_at_one_level_of_brightness(lite0, labelled):
    images, labels = labelled
    images, labels = images[:3], labels[:3]
    result = PGD(epsilon=1 / 255, steps=10, random_start=False)(lite0, images, labels)
    assert result.success.tolist() == [True] * 3
    assert (result.clean_accuracy, result.robust_accuracy, result.success_rate) == (1, 0, 1)
