"""Folding batch norms changes the speed of a model and nothing else."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from timmscope import HookedModel, load_model
from timmscope.models.folding import TOLERANCE, fold_batch_norms
from timmscope.models.packing import pack_convolutions
from timmscope_registry import LayerNotFound
from timmscope_registry.hooks import fingerprint


def made(module: nn.Module) -> HookedModel:
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None:
            part.running_mean.normal_()
            part.running_var.uniform_(0.3, 3)
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    return HookedModel(module, mean=(0.0,) * 3, std=(1.0,) * 3, input_size=(3, 8, 8))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, bias=True)
        self.norm = nn.BatchNorm2d(5)
        self.fc = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).mean((2, 3)))


class Twice(Plain):
    """A function outside all modules uses the convolution's output too."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.fc((self.norm(y) + y).mean((2, 3)))


@pytest.mark.parametrize(
    "name", ["resnet18", "efficientnet_lite0", "mobilenetv3_small_050", "densenet121"]
)
def test_the_copy_has_the_models_values_and_the_model_is_not_changed(name: str) -> None:
    model = load_model(f"random:{name}")
    torch.manual_seed(1)
    for part in model.module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 2)
    last = list(model.layers)[-1]
    before = fingerprint(model.module)
    folded = fold_batch_norms(model, [last])
    assert fingerprint(model.module).difference(before) == []
    assert folded is not None
    folded_away = [name for name in model.layers if name not in folded.layers]
    assert folded_away
    assert all(isinstance(model.module.get_submodule(name), nn.Conv2d) for name in folded_away)
    assert [name for name in model.layers if name not in folded_away] == list(folded.layers)
    images = torch.rand(3, *model.input_size)
    with torch.no_grad(), model.record(last) as one, folded.record(last) as other:
        model(images)
        folded(images)
    worst = (one[last] - other[last]).abs().max()
    assert 0 < worst <= TOLERANCE * one[last].abs().max()


def test_a_convolution_among_the_layers_to_keep_is_not_folded() -> None:
    model = made(Plain())
    assert fold_batch_norms(model, ["conv", "fc"]) is None
    folded = fold_batch_norms(model, ["norm", "fc"])
    assert folded is not None
    assert isinstance(folded.module.norm, nn.Identity)
    assert isinstance(model.module.norm, nn.BatchNorm2d)
    assert folded.module.fc.weight is model.module.fc.weight


def test_a_second_use_of_an_output_outside_modules_is_detected() -> None:
    assert fold_batch_norms(made(Twice()), ["fc"]) is None


def test_models_with_hooks_and_models_not_in_float32_are_not_folded() -> None:
    model = made(Plain())
    with model.edit({"norm": torch.clone}):
        assert fold_batch_norms(model, ["fc"]) is None
    handle = model.module.norm.register_forward_hook(lambda *a: None)
    assert fold_batch_norms(model, ["fc"]) is None
    handle.remove()
    assert fold_batch_norms(model, ["fc"]) is not None
    assert fold_batch_norms(made(copy.deepcopy(model.module).double()), ["fc"]) is None
    assert fold_batch_norms(load_model("random:vit_tiny_patch16_224?img_size=32"), ["norm"]) is None


class Stretched(nn.Module):
    """Two norms, of which the second can cancel almost all of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 5, 1)
        self.norm2 = nn.BatchNorm2d(5)
        self.fc = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        return self.fc(self.norm2(self.conv2(x)).mean((2, 3)))


def test_a_fused_copy_has_the_models_layers_except_folded_convolutions() -> None:
    model = made(Plain())
    before = fingerprint(model.module)
    fused = model.fused()
    assert fingerprint(model.module).difference(before) == []
    assert list(fused.layers) == ["norm", "fc", "logits"]
    assert (fused.id, fused.weights_sha256) == (model.id, model.weights_sha256)
    for ask in (fused.record, fused.cut, lambda name: fused.edit({name: torch.clone})):
        with pytest.raises(LayerNotFound, match="norm is folded into it in this copy"):
            ask("conv")
    images = torch.rand(7, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(fused(images), model(images), rtol=1e-5, atol=1e-6)
        assert torch.equal(fused(images)[:2], fused(images[:2]))


def test_a_fused_copy_has_the_same_gradients() -> None:
    model = load_model("random:mobilenetv3_small_050?img_size=64&num_classes=10")
    images = torch.rand(2, 3, 64, 64)
    fused = model.fused()
    assert fused is not model
    with torch.no_grad():
        fused(images)  # the weights are packed now
    for (score, slope), (ours, fast) in zip(
        [model.gradient(images, "class:3")], [fused.gradient(images, "class:3")], strict=True
    ):
        torch.testing.assert_close(ours, score, rtol=1e-5, atol=1e-5)
        assert (fast - slope).abs().max() <= 1e-5 * slope.abs().max()


def test_only_norms_that_can_be_folded_exactly_are_folded() -> None:
    torch.manual_seed(0)  # what is lost to rounding depends on the weights
    model = made(Stretched())
    model.module.conv2.bias.data += 3e4
    model.module.norm2.running_mean += 3e4
    assert fold_batch_norms(model, ["norm", "fc"]) is None
    fused = model.fused()
    assert list(fused.layers) == ["norm", "conv2", "norm2", "fc", "logits"]
    assert isinstance(fused.module.norm2, nn.BatchNorm2d)
    # A function uses the convolution's output too: nothing is folded, but weights are packed.
    twice = made(Twice())
    images = torch.rand(2, 3, 8, 8)
    assert list(twice.fused().layers) == ["conv", "norm", "fc", "logits"]
    torch.testing.assert_close(twice.fused()(images), twice(images), rtol=1e-6, atol=1e-6)


def test_fusing_returns_the_model_itself_if_nothing_is_gained() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.mean((2, 3)))

    flat = HookedModel(Flat(), mean=(0.0,) * 3, std=(1.0,) * 3, input_size=(3, 8, 8))
    assert flat.fused() is flat
    double = made(Plain().double())
    assert double.fused() is double


@pytest.mark.parametrize("groups", [1, 4])
def test_packed_convolutions_equal_unpacked_ones(groups: int) -> None:
    from timm.layers import Conv2dSame

    torch.manual_seed(0)
    for kind, stride, padding in ((nn.Conv2d, 2, 1), (nn.Conv2d, 1, 2), (Conv2dSame, 2, 0)):
        conv = kind(8, 12, 3, stride=stride, padding=padding, groups=groups, bias=groups == 1)
        usual = nn.Sequential(conv).requires_grad_(False)
        packed = copy.deepcopy(usual)
        assert pack_convolutions(packed) == 1
        for shape in ((2, 8, 9, 7), (5, 8, 16, 16)):
            for order in (torch.contiguous_format, torch.channels_last):
                x = torch.randn(shape).to(memory_format=order)
                torch.testing.assert_close(packed(x), usual(x), rtol=1e-6, atol=1e-6)
        again = pickle.loads(pickle.dumps(packed))
        torch.testing.assert_close(again(x), usual(x), rtol=1e-6, atol=1e-6)
        exact = copy.deepcopy(packed).double()(x.double())
        assert torch.equal(exact, copy.deepcopy(usual).double()(x.double()))
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(packed(leaf).square().sum(), leaf)
        (expected,) = torch.autograd.grad(usual(leaf).square().sum(), leaf)
        assert torch.equal(slope, expected)


class Shared(nn.Module):
    """One convolution and one norm, each under two names."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.twice = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), twice
        self.body = nn.Sequential(self.conv, self.norm)
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.conv(x).relu() if self.twice else x).mean((2, 3)))


class SideHead(Plain):
    """A function passes the convolution's output to a head that the output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.head(y.relu())
        return self.fc(self.norm(y).mean((2, 3)))


class ReadsTheNorm(Plain):
    """A forward that reads an attribute of the norm."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.norm.eps


class KeywordCalls(Plain):
    """Parts are called with keyword arguments."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(input=self.conv(input=x)).mean((2, 3)))


class OneByOne(Plain):
    """The convolution gets images without a batch axis, and also an empty batch."""

    def forward(self, x: Tensor) -> Tensor:
        each = torch.stack([self.conv(image) for image in x])
        return self.fc(torch.cat([each, self.conv(x[:0])]).mean((2, 3)))


@pytest.mark.parametrize(
    ("module", "folded_away"),
    [
        (lambda: Shared(twice=True), []),
        (lambda: Shared(twice=False), ["conv"]),
        (SideHead, []),
        (ReadsTheNorm, []),
        (KeywordCalls, ["conv"]),
        (OneByOne, []),
    ],
)
def test_copies_of_unusual_networks_have_the_same_layers_and_values(module, folded_away) -> None:
    model = made(module())
    fused = model.fused()
    names = list(fused.layers)
    assert names == [name for name in model.layers if name not in folded_away]
    images = torch.rand(3, 3, 9, 8)
    with torch.no_grad(), model.record(*names) as one, fused.record(*names) as other:
        model(images)
        fused(images)
    for name in names:
        assert (one[name] - other[name]).abs().max() <= 1e-5 * one[name].abs().max(), name


def test_changed_weights_of_a_copy_are_packed_again() -> None:
    from timmscope.evaluation.randomisation import cascade

    torch.manual_seed(0)
    fused, images = made(Plain()).fused(), torch.rand(2, 3, 8, 8)
    for stage in cascade(fused, 3, seed=0):
        with torch.no_grad():
            packed = stage(images)
        usual, _ = stage.gradient(images, "class:0")  # a graph: PyTorch's own convolution
        torch.testing.assert_close(packed[:, 0], usual, rtol=1e-5, atol=1e-6)


def test_a_copy_has_forward_mode_derivatives() -> None:
    from torch.autograd import forward_ad

    model, images = made(Plain()), torch.rand(2, 3, 8, 8)
    slopes = []
    for each in (model, model.fused()):
        with forward_ad.dual_level(), torch.no_grad():
            dual = forward_ad.make_dual(images, torch.ones_like(images))
            slopes.append(forward_ad.unpack_dual(each(dual)).tangent)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-5, atol=1e-6)


def test_a_copy_made_in_inference_mode_has_gradients() -> None:
    model, images = made(Plain()), torch.rand(2, 3, 8, 8)
    with torch.inference_mode():
        fused = model.fused()
    assert fused is not model
    _, slope = fused.gradient(images, "class:1")
    torch.testing.assert_close(slope, model.gradient(images, "class:1")[1], rtol=1e-5, atol=1e-7)


def test_a_model_with_backward_hooks_is_not_fused() -> None:
    model = made(Plain())
    handle = model.module.norm.register_full_backward_hook(lambda *a: None)
    assert model.fused() is model
    handle.remove()
    assert model.fused() is not model
