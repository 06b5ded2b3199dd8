"""Backward rules equal captum's and those of backward passes written by hand."""

from __future__ import annotations

import warnings

import pytest
import torch
from captum.attr import Deconvolution, GuidedBackprop
from torch import Tensor, nn
from torch.nn import functional as F

from timmscope_registry.errors import UnsupportedModel
from timmscope_registry.hooks import (
    BackwardRule,
    ModelHooks,
    deconvnet,
    ensure_torchvision,
    fingerprint,
    guided,
)

ensure_torchvision()

import timm  # noqa: E402


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "densenet121"])
def test_rules_equal_captums(name: str) -> None:
    torch.manual_seed(0)
    options = {"resnet18": {"zero_init_last": False}, "vgg11": {"mlp_ratio": 0.02}}.get(name, {})
    model = timm.create_model(name, num_classes=7, **options).double().eval()
    images = torch.randn(2, 3, 64, 64).double()
    target = torch.tensor([1, 5])
    hooks = ModelHooks(model, images)
    for rule, peer in ((guided, GuidedBackprop), (deconvnet, Deconvolution)):
        leaf = images.clone().requires_grad_()
        before = fingerprint(model)
        with hooks.backward_rule(rule):
            score = hooks(leaf)[[0, 1], target].sum()
            (ours,) = torch.autograd.grad(score, leaf)
        assert before.difference(fingerprint(model)) == []
        # captum's hooks cannot see through an in-place ReLU
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = peer(model).attribute(images.clone(), target=target)
        error = (ours - theirs).abs().max() / theirs.abs().max()
        assert float(theirs.abs().max()) > 0
        assert float(error) <= 1e-5


class Handmade(nn.Module):
    """ReLU as a function, as a method in place, ReLU6, and one module used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(12, 12) for _ in range(5))
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x.flatten(1)))
        x = self.b(x).relu_()
        x = F.relu6(self.c(x) * 20)
        x = self.act(self.d(x))
        return self.act(self.e(x))


def by_hand(model: Handmade, x: Tensor, seed: Tensor, rule: str) -> Tensor:
    """Forward and backward of `Handmade` layer by layer."""
    layers = [model.a, model.b, model.c, model.d, model.e]
    value, gates = x.flatten(1), []
    for layer in layers:
        before = value @ layer.weight.T + layer.bias
        if layer is model.c:
            before = before * 20
            gates.append((before > 0) & (before < 6))
            value = before.clamp(0, 6)
        else:
            gates.append(before > 0)
            value = before.clamp(min=0)
    gradient = seed
    for layer, gate in zip(reversed(layers), reversed(gates), strict=True):
        if rule == "guided":
            gradient = gradient * gate * (gradient > 0)
        elif rule == "deconvnet":
            gradient = gradient * (gradient > 0)
        else:
            gradient = gradient * gate
        if layer is model.c:
            gradient = gradient * 20
        gradient = gradient @ layer.weight
    return gradient.reshape(x.shape)


@pytest.mark.parametrize("seed", range(3))
def test_rules_cover_functional_in_place_and_reused_activations(seed: int) -> None:
    model = Handmade().double()
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 3, 2, 2, generator=generator).double()
    weights = torch.randn(4, 12, generator=generator).double()
    hooks = ModelHooks(model, images)
    gradients = {}
    for rule in (None, guided, deconvnet):
        leaf = images.clone().requires_grad_()
        if rule is None:
            (found,) = torch.autograd.grad((hooks(leaf) * weights).sum(), leaf)
        else:
            with hooks.backward_rule(rule):
                (found,) = torch.autograd.grad((hooks(leaf) * weights).sum(), leaf)
        name = rule.name if rule else "plain"
        torch.testing.assert_close(found, by_hand(model, images, weights, name))
        gradients[name] = found
    assert not torch.allclose(gradients["plain"], gradients["guided"])
    assert not torch.allclose(gradients["deconvnet"], gradients["guided"])


def test_rule_does_not_act_on_the_graph_before_the_model() -> None:
    model = Handmade().double()
    source = torch.randn(2, 3, 2, 2).double().requires_grad_()
    hooks = ModelHooks(model, source)
    images = F.relu(source)
    with hooks.backward_rule(guided):
        score = hooks(images)
        (found,) = torch.autograd.grad(score, source, torch.ones_like(score))
    by_model = by_hand(model, images.detach(), torch.ones(2, 12).double(), "guided")
    torch.testing.assert_close(found, by_model * (source > 0))  # negative values pass the last one
    assert bool((found < 0).any())


def test_rule_ends_with_its_context() -> None:
    model = Handmade().double()
    images = torch.randn(2, 3, 2, 2).double().requires_grad_()
    hooks = ModelHooks(model, images)
    with hooks.backward_rule(guided):
        score = hooks(images)
    (found,) = torch.autograd.grad(score, images, torch.ones_like(score))
    plain = by_hand(model, images.detach(), torch.ones(2, 12).double(), "plain")
    torch.testing.assert_close(found, plain)


def test_rule_combines_with_a_recording_that_stops_early_and_with_a_cut() -> None:
    model = Handmade().double()
    images = torch.randn(2, 3, 2, 2).double().requires_grad_()
    hooks = ModelHooks(model, images)
    with hooks.backward_rule(guided), hooks.record("b") as recording:
        hooks(images)
        weights = torch.randn(2, 12).double()
        (found,) = torch.autograd.grad(recording["b"], images, weights)
    gate = (images.detach().flatten(1) @ model.a.weight.T + model.a.bias) > 0
    gradient = weights @ model.b.weight
    expected = (gradient * gate * (gradient > 0)) @ model.a.weight
    torch.testing.assert_close(found.flatten(1), expected)

    with hooks.backward_rule(guided), hooks.cut("e") as cut:
        score = hooks(images)
        weights = torch.randn(2, 12).double()
        (tail,) = torch.autograd.grad(score, cut.leaf, weights)
    torch.testing.assert_close(tail, weights * (cut.leaf > 0) * (weights > 0))


@pytest.mark.parametrize(
    ("name", "options", "activation"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2}, "2 GELU"),
        ("efficientnet_b0", {}, "SiLU"),
        ("mobilenetv3_small_100", {}, "Hardswish"),
    ],
)
def test_other_activations_are_refused_by_name(name: str, options: dict, activation: str) -> None:
    model = timm.create_model(name, **options)
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    hooks = ModelHooks(model, images)
    before = fingerprint(model)
    with (
        pytest.raises(UnsupportedModel, match=rf"guided .* ReLU, ReLU6; .* has .*{activation}"),
        hooks.backward_rule(guided),
    ):
        hooks(images)
    assert before.difference(fingerprint(model)) == []


def test_a_graph_without_activations_is_refused_unless_it_starts_at_a_cut() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images = torch.randn(2, 3, 2, 2, requires_grad=True)
    hooks = ModelHooks(model, images)
    with pytest.raises(UnsupportedModel, match="no activation"), hooks.backward_rule(guided):
        hooks(images)
    with hooks.backward_rule(guided), hooks.cut("1") as cut:
        hooks(images).sum().backward()
    torch.testing.assert_close(cut.leaf.grad, torch.ones(2, 3))
    with torch.no_grad(), hooks.backward_rule(guided):
        assert hooks(images).shape == (2, 3)  # there is no graph


def test_a_users_own_rule_works() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.GELU())
    images = torch.randn(2, 3, 2, 2, requires_grad=True)
    hooks = ModelHooks(model, images)
    straight = BackwardRule(name="straight", activations={"GELU": lambda g_in, g_out: g_out})
    with hooks.backward_rule(straight):
        hooks(images).sum().backward()
    expected = (torch.ones(2, 12) @ model[1].weight).reshape(images.shape)
    torch.testing.assert_close(images.grad, expected)
