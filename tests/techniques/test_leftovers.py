"""Whatever a method does to the model is undone, and reported with its name."""

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

deed: Callable[[HookedModel], object] = print
opened = ExitStack()
"""Nobody closes it."""


class Careless(AttributionTechnique):
    """Does something first."""

    def attribute(self, model, images, objective):
        deed(model)
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


DEEDS: dict[str, tuple[Callable[[HookedModel], object], str]] = {
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


@pytest.mark.parametrize("name", DEEDS)
def test_what_a_method_changes_is_put_back_and_told(model, monkeypatch, name):
    act, what = DEEDS[name]
    monkeypatch.setitem(globals(), "deed", act)
    before = fingerprint(model.module)
    answers = model(IMAGES)
    with pytest.warns(StateWarning, match=f"Careless changed .*{what}.*; it was put back"):
        result = Careless()(model, IMAGES, 0)
    assert fingerprint(model.module).difference(before) == []
    assert torch.equal(model(IMAGES), answers)
    assert torch.equal(result.raw, IMAGES.sum(1))


@pytest.mark.filterwarnings("error")
def test_all_is_undone_where_warnings_are_errors(model, monkeypatch):
    def hook_and_train(model):
        model.module.register_forward_hook(lambda *a: None)
        model.module.train()

    monkeypatch.setitem(globals(), "deed", hook_and_train)
    before = fingerprint(model.module)
    with pytest.raises(StateWarning, match="left 1 hook"):
        Careless()(model, IMAGES, 0)
    assert fingerprint(model.module).difference(before) == []


def test_a_method_that_breaks_is_cleaned_up_after_too(model, monkeypatch):
    def break_down(model):
        model.module.train()
        raise ZeroDivisionError

    monkeypatch.setitem(globals(), "deed", break_down)
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
        (shorten, "as buffers of another size; load"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*put back")
def test_weights_that_a_method_wrote_into_are_told(model, monkeypatch, act, where):
    monkeypatch.setitem(globals(), "deed", act)
    with pytest.raises(TechniqueError, match=f"Careless wrote into weights of the model, {where}"):
        Careless()(model, IMAGES, 0)


def test_weights_may_be_written_into_and_restored(model, monkeypatch):
    def there_and_back(model):
        kept = {name: value.clone() for name, value in model.module.state_dict().items()}
        nn.init.zeros_(model.module.head.weight)
        model.module.load_state_dict(kept)

    monkeypatch.setitem(globals(), "deed", there_and_back)
    Careless()(model, IMAGES, 0)


def test_numpy_and_python_are_seeded_and_put_back(model, monkeypatch):
    drawn = []

    def draw(model):
        drawn.append((random.random(), float(np.random.rand())))  # noqa: NPY002
        random.seed(1)

    monkeypatch.setitem(globals(), "deed", draw)
    before = fingerprint(model.module)
    for seed in (4, 4, -5):
        Careless()(model, IMAGES, 0, seed=seed)
    assert fingerprint(model.module).difference(before) == []
    assert drawn[0] == drawn[1] != drawn[2]
