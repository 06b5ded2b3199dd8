"""Changes that a technique makes to the model are undone, and the warning names the technique."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from timmscope import AttributionTechnique, HookedModel, TechniqueError
from timmscope.techniques.restore_state import StateWarning
from timmscope_registry.hooks import fingerprint

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

action: Callable[[HookedModel], object] = print
opened = ExitStack()
"""A stack that no test closes."""


class Careless(AttributionTechnique):
    """Runs `action` on the model."""

    def attribute(self, model, images, objective):
        action(model)
        return images.sum(1)


class Small(nn.Module):
    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        self.fused_attn = True

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


@pytest.fixture
def model() -> HookedModel:
    torch.manual_seed(0)
    module = Small().eval()
    return HookedModel(module, mean=(0.0,) * 3, std=(1.0,) * 3, input_size=(3, 8, 8), id="small")


def learn(model: HookedModel) -> None:
    model.module.train().requires_grad_(True)
    model.module(IMAGES).sum().backward()


def batch_norm(model: HookedModel) -> None:
    norm = model.module.norm
    functional.batch_norm(torch.ones(2, 4, 3), norm.running_mean, norm.running_var, training=True)


def shorten(model: HookedModel) -> None:
    model.module.norm.running_var.data = torch.ones(3)


ACTIONS: dict[str, tuple[Callable[[HookedModel], object], str]] = {
    "train": (lambda m: m.module.train(), "the model's train mode"),
    "thaw": (lambda m: m.module.requires_grad_(False), "requires_grad"),
    "edit": (lambda m: opened.enter_context(m.edit({"conv": torch.zeros_like})), "open contexts"),
    "half": (lambda m: m.module.half(), "the model's dtype or device"),
    "meta": (lambda m: m.module.to("meta"), "parts or tensors of the model"),
    "head": (lambda m: setattr(m.module, "head", nn.Identity()), "parts or tensors of the model"),
    "new part": (lambda m: setattr(m.module, "extra", nn.ReLU()), "parts or tensors of the model"),
    "attention": (lambda m: setattr(m.module, "fused_attn", False), "the model's fused_attn"),
    "forward": (lambda m: setattr(m.module.norm, "forward", lambda x: x), "the model's forward"),
    "backward": (lambda m: m.module(IMAGES).sum().backward(), "gradients of weights"),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_changes_of_the_model_are_restored_with_a_warning(model, monkeypatch, name):
    act, what = ACTIONS[name]
    monkeypatch.setitem(globals(), "action", act)
    before = fingerprint(model.module)
    answers = model(IMAGES)
    with pytest.warns(StateWarning, match=f"Careless changed .*{what}.*; it was restored"):
        result = Careless()(model, IMAGES, 0)
    assert fingerprint(model.module).difference(before) == []
    assert torch.equal(model(IMAGES), answers)
    assert torch.equal(result.raw, IMAGES.sum(1))


@pytest.mark.filterwarnings("error")
def test_everything_is_undone_even_if_warnings_are_errors(model, monkeypatch):
    def hook_and_train(model):
        model.module.register_forward_hook(lambda *a: None)
        model.module.train()

    monkeypatch.setitem(globals(), "action", hook_and_train)
    before = fingerprint(model.module)
    with pytest.raises(StateWarning, match="left 1 hook"):
        Careless()(model, IMAGES, 0)
    assert fingerprint(model.module).difference(before) == []


def test_changes_are_undone_after_an_exception(model, monkeypatch):
    def break_down(model):
        model.module.train()
        raise ZeroDivisionError

    monkeypatch.setitem(globals(), "action", break_down)
    before = fingerprint(model.module)
    with pytest.raises(ZeroDivisionError), pytest.warns(StateWarning, match="train mode"):
        Careless()(model, IMAGES, 0)
    assert fingerprint(model.module).difference(before) == []


@pytest.mark.parametrize(
    ("act", "where"),
    [
        (lambda m: nn.init.zeros_(m.module.head.weight), "as head.weight; load the model again"),
        (learn, "as norm.num_batches_tracked"),
        (batch_norm, "as norm.running_mean, norm.running_var; load"),
        (lambda m: m.module.norm.running_var.data.mul_(2), "as norm.running_var; load"),
        (lambda m: m.module.head.weight.data.mul_(2), "as head.weight; load"),
        (lambda m: m.module.conv.weight.detach().numpy().fill(0), "as conv.weight; load"),
        (shorten, "as norm.running_var; load"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*restored")
def test_changed_weights_are_an_error_that_names_them(model, monkeypatch, act, where):
    monkeypatch.setitem(globals(), "action", act)
    with pytest.raises(TechniqueError, match=f"Careless wrote into weights of the model, {where}"):
        Careless()(model, IMAGES, 0)


def test_a_technique_may_change_weights_and_restore_them(model, monkeypatch):
    def there_and_back(model):
        kept = {name: value.clone() for name, value in model.module.state_dict().items()}
        nn.init.zeros_(model.module.head.weight)
        model.module.load_state_dict(kept)

    monkeypatch.setitem(globals(), "action", there_and_back)
    Careless()(model, IMAGES, 0)


def test_no_call_repeats_numbers_of_the_process(model, monkeypatch):
    def draw(model=None):
        return (
            float(torch.rand(1)),
            random.random(),
            float(np.random.rand()),  # noqa: NPY002
        )

    drawn = []
    # As another thread might, in the middle of the call.
    monkeypatch.setitem(globals(), "action", lambda model: drawn.append(draw()))
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = [draw() for _ in range(4)]
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    for seed in (4, 4, -5):
        Careless()(model, IMAGES, 0, seed=seed)
    assert [*drawn, draw()] == expected
