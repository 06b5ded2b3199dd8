"""Hooks act only in the thread and the forward that set them, whatever else runs the module."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from timmscope_registry.hooks import ModelHooks, fingerprint


def elsewhere(call: Callable[[], Any]) -> Any:
    """The result of a call in another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(timeout=30)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(backbone, nn.Flatten(), nn.Linear(64, 5)).eval()


@pytest.fixture
def hooks(model: nn.Sequential, images: Tensor) -> ModelHooks:
    return ModelHooks(model, images)


@pytest.mark.parametrize("run", [elsewhere, lambda call: call()], ids=["thread", "same thread"])
def test_a_forward_during_ours_is_plain(model, hooks, images, run):
    expected, seen = model(images), []

    def edit(value: Tensor) -> Tensor:
        seen.append(run(lambda: model(images)))
        return value * 0

    def read(value: Tensor) -> None:
        seen.append(run(lambda: model(images)))

    with hooks.edit({"0": edit}):
        assert torch.equal(hooks(images), model[2].bias.expand(2, 5))
    with hooks.watch({"0": read}), hooks.record("0.0"):
        assert hooks(images).shape == (2, 0)  # ours stops early
    with hooks.watch_inputs({"2": read}):
        assert torch.equal(hooks(images), expected)
    assert len(seen) == 3
    assert all(torch.equal(each, expected) for each in seen)


class Meanwhile(nn.Module):
    """Runs the whole model in another thread during the first forward."""

    root: ClassVar[list[nn.Module]] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.root:
            root = self.root.pop()
            elsewhere(lambda: root(torch.ones(1, 3, 4, 4)))
        return x * 1


def test_the_catalogue_lists_only_the_calls_of_its_own_forward(model, images):
    whole = nn.Sequential(Meanwhile(), *model)
    Meanwhile.root = [whole]
    layers = ModelHooks(whole, images).layers
    assert not Meanwhile.root
    assert list(layers) == ["0", "1.0", "1.1", "1.2", "1", "2", "3", "logits"]
    assert layers["0"].shape == (3, 4, 4)


def test_forwards_of_modules_with_common_parts_take_turns(model, hooks, images):
    model.train()  # a forward that ended while another runs would put the parts into train mode
    backbone, other = ModelHooks(model[0], images), ModelHooks(nn.Conv2d(3, 2, 1), images)
    before = fingerprint(model)
    second, finished = ModelHooks(model, images), []
    threads = [
        threading.Thread(target=lambda h=h: finished.append(h(images))) for h in (backbone, second)
    ]

    def meanwhile(value: Tensor) -> Tensor:
        for thread in threads:
            thread.start()
        assert elsewhere(lambda: other(images)).shape == (2, 2, 4, 4)  # nothing in common
        threads[0].join(0.1)
        assert not finished
        return value

    with hooks.edit({"0.0": meanwhile}):
        hooks(images)
    for thread in threads:
        thread.join()
    assert sorted(each.shape for each in finished) == [(2, 4, 4, 4), (2, 5)]
    assert fingerprint(model).difference(before) == []


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fused_attn = True
        self.matrix = nn.Softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1) if self.fused_attn else self.matrix(x)


def test_plain_attention_belongs_to_the_thread_that_opened_it(images):
    module = nn.Sequential(Attention(), Attention())
    module[1].fused_attn = False
    hooks, other = ModelHooks(module, images), ModelHooks(module, images)

    def look() -> bool:
        with other.plain_attention() as names:
            assert names == ("0",)
        return module[0].fused_attn

    with hooks.plain_attention() as names, hooks.record("0.matrix") as recording:
        assert names == ("0",)
        assert elsewhere(look)  # between forwards it is fused, in all threads
        hooks(images)
        torch.testing.assert_close(recording["0.matrix"], images.softmax(-1))
    with pytest.raises(ZeroDivisionError), hooks.plain_attention():
        raise ZeroDivisionError
    assert module[0].fused_attn
    assert not hooks.open_contexts


@pytest.mark.parametrize("make", [copy.deepcopy, lambda hooks: pickle.loads(pickle.dumps(hooks))])
def test_copies_have_the_module_and_no_open_contexts(hooks, images, make):
    expected = hooks(images)
    with hooks.edit({"0": torch.zeros_like}):
        twin = make(hooks)
        assert torch.equal(twin(images), expected)
    assert twin.module is not hooks.module
    assert list(twin.layers) == list(hooks.layers)
    with twin.edit({"0": torch.zeros_like}):
        assert torch.equal(twin(images), twin.module[2].bias.expand(2, 5))
        assert torch.equal(hooks(images), expected)
