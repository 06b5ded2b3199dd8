"""Activation calls name the hook points around them; their inputs are read before being changed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from timmscope_registry import LayerNotFound, UnsupportedModel
from timmscope_registry.hooks import ModelHooks, fingerprint


class Residual(nn.Module):
    """A block whose second, in-place ReLU gets a sum that no module returns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(3, 3, 1)
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.act1(self.norm(self.conv(x))))
        y += x
        return self.act2(y)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Residual()
        self.twice = nn.GELU()
        self.soft = nn.Softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.block(x))
        return self.soft(self.twice(x).mean((2, 3)))


@pytest.fixture
def hooks() -> ModelHooks:
    torch.manual_seed(0)
    return ModelHooks(Net().eval(), torch.rand(1, 3, 4, 4))


def test_activations_name_the_hook_points_before_and_after_them(hooks: ModelHooks) -> None:
    found = {call.point: call for call in hooks.activations()}
    assert list(found) == ["block.act1", "block.act2", "twice#0", "twice"]  # no softmax
    assert [call.kind for call in found.values()] == ["ReLU", "ReLU", "GELU", "GELU"]
    assert found["block.act1"].before == {"block.norm"}
    assert found["block.act1"].after == {"block.act1"}
    assert found["block.act2"].before == set()  # conv2's output was changed in between
    assert found["block.act2"].after == {"block.act2", "block"}
    assert found["twice#0"].before == {"block.act2", "block"}
    assert found["twice"].before == {"twice#0"}


def test_inputs_are_read_before_they_are_overwritten(hooks: ModelHooks) -> None:
    x = torch.randn(2, 3, 4, 4)
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str):
        return lambda t: seen.setdefault(name, []).append(t.clone())

    before = fingerprint(hooks.module)
    names = ("block.act1", "block.act2", "twice")
    with hooks.watch_inputs({name: keep(name) for name in names}), hooks.record("twice") as kept:
        hooks(x)
        out = kept["twice"]
    block = hooks.module.block
    normed = block.norm(block.conv(x))
    total = block.conv2(normed.relu()) + x
    torch.testing.assert_close(seen["block.act1"], [normed])
    torch.testing.assert_close(seen["block.act2"], [total])
    torch.testing.assert_close(seen["twice"], [nn.functional.gelu(total.relu())])  # the last call
    torch.testing.assert_close(out, nn.functional.gelu(seen["twice"][0]))
    assert fingerprint(hooks.module) == before
    hooks(x)
    assert [len(values) for values in seen.values()] == [1, 1, 1]


def test_a_failing_reader_leaves_no_hook(hooks: ModelHooks) -> None:
    x = torch.rand(1, 3, 4, 4)
    before = fingerprint(hooks.module)

    def fail(value: Tensor) -> None:
        raise ValueError("no")

    with hooks.watch_inputs({"block": fail}), pytest.raises(ValueError, match="no"):
        hooks(x)
    assert fingerprint(hooks.module) == before
    with pytest.raises(LayerNotFound, match="block"):
        hooks.watch_inputs({"blocc": fail})


def test_watching_the_input_of_a_module_that_gets_no_tensor_is_an_error() -> None:
    class Source(nn.Module):
        def forward(self) -> Tensor:
            return torch.ones(2, 3, 2, 2)

    class Uses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.source = Source()

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.source()).mean((2, 3))

    hooks = ModelHooks(Uses(), torch.rand(2, 3, 2, 2))
    with (
        hooks.watch_inputs({"source": lambda value: None}),
        pytest.raises(UnsupportedModel, match="Source gets no tensor"),
    ):
        hooks(torch.rand(2, 3, 2, 2))
