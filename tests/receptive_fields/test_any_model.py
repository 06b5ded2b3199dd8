"""Every kind of field gives valid boxes on every architecture and leaves the model unchanged."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from tests.receptive_fields.conftest import hooked, plain
from torch import nn

from timmscope import LayerNotFound, ParameterError, UnsupportedModel, receptive_field
from timmscope.receptive_fields import KINDS, compute
from timmscope_registry.hooks import fingerprint

ARCHITECTURES = {
    "resnet18": ((64, 96), {}),
    "efficientnet_b0": ((64, 64), {}),
    "tf_efficientnet_lite0": ((65, 65), {}),
    "mobilenetv3_small_100": ((64, 64), {}),
    "convnext_atto": ((96, 96), {}),
    "vgg11": ((64, 64), {}),
    "densenet121": ((64, 64), {}),
    "regnety_002": ((96, 64), {}),
    "vit_tiny_patch16_224": ((96, 64), {"img_size": (96, 64)}),
    "deit_tiny_distilled_patch16_224": ((64, 64), {"img_size": 64}),
    "vit_small_patch14_reg4_dinov2": ((56, 56), {"img_size": 56}),
    "swin_tiny_patch4_window7_224": ((112, 112), {"img_size": 112}),
    "mambaout_femto": ((96, 96), {}),
    "mixer_s32_224": ((96, 96), {"img_size": 96}),
    "hiera_tiny_224": ((96, 128), {"img_size": (96, 128)}),
    "cait_xxs24_224": ((64, 64), {"img_size": 64}),
    "levit_128s": ((224, 224), {}),
}


@pytest.mark.parametrize(
    "name",
    [  # three take long and are like others
        pytest.param(
            name,
            marks=[pytest.mark.soak]
            if name in ("densenet121", "mixer_s32_224", "cait_xxs24_224")
            else [],
        )
        for name in ARCHITECTURES
    ],
)
def test_every_kind_gives_a_box_inside_the_image(name):
    size, options = ARCHITECTURES[name]
    model = hooked(name, size, **options)
    height, width = size
    layers = [layer for layer in model.layers.values() if layer.grid is not None]
    before = fingerprint(model.module)
    for layer in [layers[len(layers) // 4], layers[len(layers) // 2], layers[-1]]:
        fields = {kind: receptive_field(model, layer.name, kind) for kind in KINDS}
        for field in fields.values():
            assert field.grid == layer.grid
            assert field.boxes.shape == (*layer.grid, 4)
            left, upper, right, lower = np.moveaxis(field.boxes, -1, 0)
            assert (left >= 0).all()
            assert (upper >= 0).all()
            assert (right <= width).all()
            assert (lower <= height).all()
            assert field.unknown == ()
            assert min(field.size) >= 1
        for kind in ("exact", "spatial"):
            boxes = fields[kind].boxes
            assert (boxes[..., :2] < boxes[..., 2:]).all()
        exact, spatial = fields["exact"].boxes, fields["spatial"].boxes
        assert (exact[..., :2] <= spatial[..., :2]).all()
        assert (exact[..., 2:] >= spatial[..., 2:]).all()
    assert before.difference(fingerprint(model.module)) == []


def test_models_are_unchanged_after_a_failure_during_the_forward():
    model = hooked("efficientnet_b0", (64, 64))
    model.module.train()
    before = fingerprint(model.module)

    def fail(t):
        raise ZeroDivisionError

    for kind in KINDS:
        with pytest.raises(ZeroDivisionError), model.edit({"blocks.1.0": fail}):
            receptive_field(model, "blocks.2", kind)
        receptive_field(model, "blocks.2", kind)
        assert before.difference(fingerprint(model.module)) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_fields_are_the_same_in_every_grad_mode(kind, mode):
    model = hooked("resnet18", (64, 64))
    expected = receptive_field(model, "layer2", kind)
    compute._cache.clear()
    with mode():
        inside = receptive_field(model, "layer2", kind)
    np.testing.assert_array_equal(expected.boxes, inside.boxes)


def test_layers_without_a_grid_see_the_whole_image():
    model = hooked("vit_tiny_patch16_224", (64, 96), img_size=(64, 96))
    for kind in KINDS:
        field = receptive_field(model, "logits", kind)
        assert field.grid is None
        assert field.stride is None
        assert field.size == (64, 96)
        assert field.box((-1, -1)) == (0, 0, 96, 64)
        assert field.cell((-1, -1)) == (0, 0, 96, 64)
        assert field.sees_all((0, 5))


def test_a_field_is_computed_once_for_a_model_and_does_not_keep_it_alive(monkeypatch):
    model = hooked("mobilenetv2_050", (64, 64))
    computed = []
    follow = compute._follow
    monkeypatch.setattr(compute, "_follow", lambda *a: computed.append(a[2]) or follow(*a))
    for _ in range(3):
        receptive_field(model, "blocks.2")
        receptive_field(model, "blocks.2", "exact")
    assert computed == ["spatial", "exact"]
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_half_precision_and_memory_format_do_not_change_a_field():
    model = hooked("convnext_atto", (96, 96))
    expected = receptive_field(model, "stages.1", "exact")
    model.module.to(torch.bfloat16)
    compute._cache.clear()
    half = receptive_field(model, "stages.1", "exact")
    model.module.float().to(memory_format=torch.channels_last)
    compute._cache.clear()
    channels_last = receptive_field(model, "stages.1", "exact")
    np.testing.assert_array_equal(expected.boxes, half.boxes)
    np.testing.assert_array_equal(expected.boxes, channels_last.boxes)


def test_operations_without_a_rule_combine_all_inputs_and_are_named():
    class Spectrum(nn.Module):
        def forward(self, x):
            return x * torch.fft.fft2(x).real

    model = plain(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Spectrum(), nn.ReLU()), (8, 8))
    field = receptive_field(model, "2", "exact")
    assert field.sees_all((4, 4))
    assert any("fft" in name for name in field.unknown)
    assert receptive_field(model, "0", "exact").unknown == ()


def test_wrong_layers_and_cells_are_refused_in_one_line():
    model = hooked("efficientnet_b0", (64, 64))
    with pytest.raises(LayerNotFound, match=r"blocks\.1"):
        receptive_field(model, "blocks.11")
    field = receptive_field(model, "blocks.2", "exact")
    with pytest.raises(ParameterError, match=r"8x8 cells, there is no cell \(8, 0\)"):
        field.box((8, 0))
    with pytest.raises(UnsupportedModel, match="combines the whole image; ask for the clipped box"):
        field.box((0, 0), clip=False)
    assert repr(field).startswith("ReceptiveField(layer='blocks.2', kind='exact'")
