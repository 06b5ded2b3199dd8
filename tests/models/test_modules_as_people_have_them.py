"""Modules that are compiled, quantised or checkpointed, and copies of a `HookedModel`."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from timmscope import HookedModel, UnsupportedModel, technique
from timmscope_registry.hooks import fingerprint

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def wrap(module: nn.Module) -> HookedModel:
    return HookedModel(module, mean=(0.4,) * 3, std=(0.25,) * 3, input_size=(3, 8, 8))


class Net(nn.Module):
    """Two blocks and a head; the blocks can be checkpointed as timm does it."""

    def __init__(self, flag: str = "grad_checkpointing") -> None:
        super().__init__()
        self.flag = flag
        setattr(self, flag, False)
        self.blocks = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Dropout(0.5), nn.ReLU()),
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if getattr(self, self.flag):
            for block in self.blocks:
                for part in block:
                    x = checkpoint(part, x, use_reentrant=False)
        else:
            x = self.blocks(x)
        return self.head(x.mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def maps(model: HookedModel, layer: str = "blocks.1") -> Tensor:
    return technique("grad-cam")(layer=layer, relu=False)(model, IMAGES, "class:1").maps


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("flag", ["grad_checkpointing", "gradient_checkpointing", "with_cp"])
def test_gradient_checkpointing_changes_neither_layers_nor_maps(mode, flag):
    torch.manual_seed(0)
    net = Net(flag).train(mode)
    want, layers = maps(wrap(net)), list(wrap(net).layers)
    model = wrap(net)
    setattr(net, flag, True)
    before = fingerprint(net)
    assert torch.equal(maps(model), want)
    assert list(model.layers) == layers
    assert getattr(net, flag) is True
    assert fingerprint(net).difference(before) == []


@pytest.mark.parametrize("compile", ["all", "in place", "a part", "a part in place"])
def test_a_compiled_module_gives_the_plain_modules_map(net, compile):
    want = wrap(copy.deepcopy(net))
    net.eval()
    module = net
    if compile == "all":
        module = torch.compile(net, backend="eager")
    elif compile == "in place":
        net.compile(backend="eager")
    elif compile == "a part":
        net.blocks = torch.compile(net.blocks, backend="eager")
    else:
        net.blocks.compile(backend="eager")
    expected = module(IMAGES)  # compiled before hooks exist
    model = wrap(module)
    layer = "blocks._orig_mod.1" if compile == "a part" else "blocks.1"
    assert torch.equal(maps(model, layer), maps(want))
    if compile != "a part":
        assert model.weights_sha256 == want.weights_sha256
        assert list(model.layers) == list(want.layers)
    torch.testing.assert_close(module(IMAGES), expected)


@pytest.fixture
def quantised(net: Net) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(net.eval(), {nn.Linear}, dtype=torch.qint8)


def test_a_dynamically_quantised_module_has_a_hash_and_is_explained(net, quantised):
    model, layer = wrap(quantised), quantised.head
    bright = technique("occlusion")(patch_px=4, stride_px=4)(model, IMAGES, "class:1").raw
    assert bright.isfinite().all()
    hashed = model.weights_sha256
    assert hashed == wrap(copy.deepcopy(quantised)).weights_sha256 != wrap(net).weights_sha256
    weight, bias = layer.weight(), layer.bias()
    layer.set_weight_bias(
        torch.quantize_per_tensor(weight.dequantize() * 2, 2 * weight.q_scale(), 0, torch.qint8),
        bias,
    )
    assert wrap(quantised).weights_sha256 != hashed
    layer.set_weight_bias(weight, bias + 1)
    assert wrap(quantised).weights_sha256 != hashed


def test_a_gradient_through_a_quantised_layer_is_refused(quantised):
    model = wrap(quantised)
    for name in ("saliency", "grad-cam", "integrated-gradients"):
        with pytest.raises(UnsupportedModel, match=r"through head, a quantised.*occlusion"):
            technique(name)()(model, IMAGES, "class:1")
    with pytest.raises(UnsupportedModel, match="through head, a quantised"):
        technique("pgd")()(model, IMAGES)


def test_a_weight_without_values_is_refused(net):
    net.head.weight = nn.Parameter(torch.empty(3, 6, device="meta"))
    with pytest.raises(UnsupportedModel, match=r"the weight head\.weight of .*cannot be read"):
        wrap(net).weights_sha256  # noqa: B018


@pytest.mark.parametrize("make", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_a_model_of_its_own(net, make):
    model = wrap(net)
    want = maps(model)
    hashed = model.weights_sha256
    twin = make(model)
    assert torch.equal(maps(twin), want)
    assert twin.weights_sha256 == hashed
    nn.init.zeros_(twin.module.head.bias)
    assert twin.module.head.bias is not net.head.bias
    assert torch.equal(maps(model), want)


class Stubborn(Net):
    """Checkpoints whenever autograd is on, and cannot be told not to."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.head(x.mean((2, 3)))


def test_a_module_that_checkpoints_by_itself_is_right_or_refused():
    net = Stubborn()
    with pytest.raises(UnsupportedModel, match=r"torch\.utils\.checkpoint.*requires_grad_"):
        technique("saliency")()(wrap(net), IMAGES, "class:1")
    net.eval().requires_grad_(False)
    plain = Net().eval()
    plain.load_state_dict(net.state_dict())
    run = technique("saliency")()
    assert torch.equal(run(wrap(net), IMAGES, 1).raw, run(wrap(plain), IMAGES, 1).raw)
