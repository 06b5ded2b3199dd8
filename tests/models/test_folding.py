"""Folding batch norms changes speed and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from timmscope import HookedModel, load_model
from timmscope.models.folding import TOLERANCE, fold_batch_norms
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
    """A function uses the convolution's output too, which no module shows."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.fc((self.norm(y) + y).mean((2, 3)))


@pytest.mark.parametrize(
    "name", ["resnet18", "efficientnet_lite0", "mobilenetv3_small_050", "densenet121"]
)
def test_the_copy_answers_as_the_model_does_and_the_model_is_left_alone(name: str) -> None:
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
    assert list(folded.layers) == list(model.layers)
    images = torch.rand(3, *model.input_size)
    with torch.no_grad(), model.record(last) as one, folded.record(last) as other:
        model(images)
        folded(images)
    worst = (one[last] - other[last]).abs().max()
    assert 0 < worst <= TOLERANCE * one[last].abs().max()


def test_a_convolution_that_is_kept_is_not_folded() -> None:
    model = made(Plain())
    assert fold_batch_norms(model, ["conv", "fc"]) is None
    folded = fold_batch_norms(model, ["norm", "fc"])
    assert folded is not None
    assert isinstance(folded.module.norm, nn.Identity)
    assert isinstance(model.module.norm, nn.BatchNorm2d)
    assert folded.module.fc.weight is model.module.fc.weight


def test_what_modules_do_not_show_is_found_by_running_the_copy() -> None:
    assert fold_batch_norms(made(Twice()), ["fc"]) is None


def test_models_that_someone_listens_to_and_others_than_float32_are_left_alone() -> None:
    model = made(Plain())
    with model.edit({"norm": torch.clone}):
        assert fold_batch_norms(model, ["fc"]) is None
    handle = model.module.norm.register_forward_hook(lambda *a: None)
    assert fold_batch_norms(model, ["fc"]) is None
    handle.remove()
    assert fold_batch_norms(model, ["fc"]) is not None
    assert fold_batch_norms(made(copy.deepcopy(model.module).double()), ["fc"]) is None
    assert fold_batch_norms(load_model("random:vit_tiny_patch16_224?img_size=32"), ["norm"]) is None
