"""Exact receptive fields equal arithmetic on plain CNNs, and gradients on all other models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.receptive_fields.conftest import (
    Window,
    arithmetic,
    gradient_box,
    hooked,
    plain,
    positive,
    window_of,
)
from timm.layers import create_conv2d, create_pool2d
from torch import Tensor, nn

from timmscope import HookedModel, receptive_field


def boxes_by_arithmetic(
    windows: list[Window], size: tuple[int, int]
) -> tuple[tuple[int, int], np.ndarray]:
    """Size, and unclipped boxes (rows, columns, 4)."""
    height, down, top, rows = arithmetic(windows, size[0])
    width, across, left, columns = arithmetic(windows, size[1])
    boxes = np.empty((rows, columns, 4), np.int64)
    boxes[..., 0] = left + across * np.arange(columns)
    boxes[..., 1] = (top + down * np.arange(rows))[:, None]
    boxes[..., 2] = boxes[..., 0] + width
    boxes[..., 3] = boxes[..., 1] + height
    return (height, width), boxes


def check(model: HookedModel, layer: str, windows: list[Window]) -> None:
    size, boxes = boxes_by_arithmetic(windows, model.input_size[1:])
    for kind in ("exact", "spatial"):
        field = receptive_field(model, layer, kind)
        assert field.size == size
        np.testing.assert_array_equal(field.unclipped, boxes)
        assert field.box((0, 1), clip=False) == tuple(boxes[0, 1])
        if len(boxes) > 1:
            assert field.stride[0] == boxes[1, 0, 1] - boxes[0, 0, 1]


def resnet_windows(module: nn.Module, stages: int) -> list[Window]:
    """Windows of the main path, which is the longest."""
    windows = [window_of(module.conv1), window_of(module.maxpool)]
    for stage in range(1, stages + 1):
        for block in getattr(module, f"layer{stage}"):
            windows += [
                window_of(part)
                for name, part in block.named_children()
                if name.startswith("conv") and isinstance(part, nn.Conv2d)
            ]
    return windows


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("resnet18", (43, 99, 211, 435)),
        ("resnet34", (59, 179, 547, 899)),
        ("resnet50", (35, 91, 267, 427)),
    ],
)
def test_fields_of_resnets_follow_the_arithmetic_with_padding(name, sizes):
    model = hooked(name, (160, 224))
    for stage, size in enumerate(sizes, start=1):
        windows = resnet_windows(model.module, stage)
        assert receptive_field(model, f"layer{stage}", "exact").size == (size, size)
        check(model, f"layer{stage}", windows)


def test_middle_and_corner_fields_of_resnet50_equal_hand_computed_ones():
    model = hooked("resnet50", (224, 224))
    field = receptive_field(model, "layer1", "exact")
    assert field.grid == (56, 56)
    assert field.box((28, 28)) == (112 - 17, 112 - 17, 112 + 18, 112 + 18)
    assert field.box((0, 0)) == (0, 0, 18, 18)
    assert field.box((0, 0), clip=False) == (-17, -17, 18, 18)
    assert field.box((55, 55)) == (203, 203, 224, 224)
    assert not field.sees_all((28, 28))
    assert receptive_field(model, "layer4", "exact").sees_all((3, 3))


def test_vgg_and_dilated_resnets_follow_the_arithmetic():
    vgg = hooked("vgg11_bn", (64, 96))
    for index in (0, 3, 7, 20, 28):
        strided = [part for part in vgg.module.features[: index + 1] if hasattr(part, "stride")]
        check(vgg, f"features.{index}", [window_of(part) for part in strided])
    dilated = hooked("resnet50", (96, 96), output_stride=8)
    check(dilated, "layer3", resnet_windows(dilated.module, 3))
    check(dilated, "layer4", resnet_windows(dilated.module, 4))


@pytest.mark.parametrize("size", [(64, 65), (33, 30), (47, 17)])
def test_same_padding_dilation_and_uneven_sizes_follow_the_arithmetic(size):
    module = nn.Sequential(
        create_conv2d(3, 4, 3, stride=2, padding="same"),
        nn.ReLU6(inplace=True),
        create_conv2d(4, 4, 5, stride=2, padding="same", groups=4),
        nn.Conv2d(4, 6, 3, dilation=2, padding=2, bias=False),
        nn.BatchNorm2d(6),
        nn.Hardswish(),
        create_conv2d(6, 6, 4, padding="same"),
        create_pool2d("max", 2, stride=2, padding="same"),
        nn.Conv2d(6, 6, (3, 3), padding="valid"),
    )
    windows = [
        Window(3, 2, None),
        Window(5, 2, None),
        Window(3, 1, 2, 2),
        Window(4, 1, None),
        Window(2, 2, None),
    ]
    model = plain(module, size)
    check(model, "2", windows[:2])
    check(model, "6", windows[:4])
    check(model, "7", windows)


def test_windows_that_overhang_and_rectangular_kernels_follow_the_arithmetic():
    module = nn.Sequential(
        nn.Conv2d(3, 4, (1, 7), padding=(0, 3)),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(4, 4, (5, 1), stride=(2, 1), padding=(2, 0)),
        nn.AvgPool2d(2, 1),
    )
    field = receptive_field(plain(module, (22, 30)), "3", "exact")
    # Down: pool 3/2, convolution 5/2 (+ 4 * 2), pool 2/1 (+ 4). Across: 7, + 2, + 2.
    assert field.size == (3 + 8 + 4, 7 + 2 + 2)
    assert field.stride == (4, 2)
    assert field.box((0, 0), clip=False) == (-3, -4, 8, 11)


def test_an_edge_that_only_padding_would_reach_is_left_out():
    """With stride 2 and kernel 1, no cell sees the last column."""
    module = nn.Sequential(nn.Conv2d(3, 4, 1, stride=2), nn.Conv2d(4, 4, 3, padding=1))
    field = receptive_field(plain(module, (6, 8)), "1", "exact")
    assert field.grid == (3, 4)
    assert field.box((0, 3)) == (4, 0, 7, 3)  # not to 8: that column is skipped
    assert field.box((0, 3), clip=False) == (4, -2, 9, 3)


def test_branches_gates_and_reshapes_in_any_module_are_followed():
    class Net(nn.Module):
        num_classes = 2

        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(3, 4, 5, padding=2), nn.Conv2d(3, 4, 1)
            self.up, self.last = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Identity()
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            both = torch.cat([self.wide(x)[:, :2], self.narrow(x)[:, 2:]], 1)
            both = both.view(len(x), 4, -1).transpose(1, 2).contiguous()
            both = both.transpose(1, 2).reshape(len(x), 4, *x.shape[2:])
            both = both.flip(3).flip(3).roll(2, 3).roll(-2, 3)
            both[:, :, 0] = 0.0  # a row that depends on no pixel
            halves = nn.functional.avg_pool2d(both, 2)
            return self.head(self.last(self.up(halves)).mean((2, 3)))

    model = plain(Net(), (8, 12))
    field = receptive_field(model, "last", "exact")
    assert field.grid == (8, 12)
    assert field.unknown == ()
    # Row 2 is the upsampled row 1 of halves, rows 2 and 3 of the image, ±2 by the wide branch.
    assert field.box((2, 4)) == (2, 0, 8, 6)
    # Row 0 averages a row of zeros and row 1.
    assert field.box((0, 4)) == (2, 0, 8, 4)


def test_constant_masks_and_indices_select_what_a_cell_sees():
    class Net(nn.Module):
        num_classes = 2

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Identity()
            self.head = nn.Linear(4, 2)
            self.register_buffer("even", torch.arange(8) % 2 == 0)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            odd = x.masked_fill(self.even, 0.0)
            even = torch.where(self.even, x, odd.roll(1, -1))  # odd columns get the empty ones
            turned = even.index_select(3, torch.arange(7, -1, -1))  # even columns are empty now
            x = x.clone()
            x[..., ~self.even] = turned[..., ~self.even]
            return self.head(self.last(x).mean((2, 3)))

    field = receptive_field(plain(Net(), (8, 8)), "last", "exact")
    assert field.unknown == ()
    for column in range(8):
        source = column if column % 2 == 0 else 7 - column
        left, _, right, _ = field.box((4, column))
        assert (left, right) == (max(0, source - 1), min(8, source + 2)), column


def test_pytorchs_transformers_are_followed_without_their_fast_path():
    class Net(nn.Module):
        num_classes = 2

        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 16, 4, 4)
            layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
            self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))

    model = plain(Net(), (16, 24))
    assert receptive_field(model, "encoder").box((1, 2)) == (8, 4, 12, 8)
    assert receptive_field(model, "encoder", "exact").sees_all((1, 2))
    assert receptive_field(model, "encoder", "exact").unknown == ()
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    ("name", "size", "options", "layers"),
    [
        ("resnet18", (64, 96), {}, ["layer1", "layer2", "layer3.0"]),
        ("efficientnet_b0", (64, 64), {}, ["conv_stem", "blocks.0.0.bn1", "blocks.1.0"]),
        ("convnext_atto", (96, 64), {}, ["stem", "stages.0", "stages.1"]),
        ("convnextv2_atto", (96, 96), {}, ["stages.0.blocks.0.conv_dw", "stages.0"]),
        ("vit_tiny_patch16_224", (64, 96), {"img_size": (64, 96)}, ["patch_embed", "blocks.0"]),
        (
            "swin_tiny_patch4_window7_224",
            (112, 168),
            {"img_size": (112, 168)},
            ["layers.0.blocks.0", "layers.0", "layers.1"],
        ),
        pytest.param(*("swinv2_cr_tiny_224", (224, 224), {}, ["stages.0"]), marks=pytest.mark.slow),
        ("maxvit_pico_rw_256", (256, 256), {}, ["stem", "stages.0.blocks.0.conv.conv2_kxk"]),
        pytest.param(
            *("volo_d1_224", (224, 224), {}, ["patch_embed", "network.0.0"]), marks=pytest.mark.slow
        ),
        ("hrnet_w18_small", (64, 96), {}, ["layer1", "stage2.0.branches.1"]),
        ("inception_v3", (111, 139), {}, ["Mixed_5b", "Mixed_6a"]),
        pytest.param(
            *("halonet26t", (256, 256), {}, ["stages.0", "stages.2.0.conv1_1x1"]),
            marks=pytest.mark.slow,
        ),
        ("sequencer2d_s", (224, 224), {}, ["stem", "stages.0.blocks.0.rnn_tokens"]),
        ("hiera_tiny_224", (224, 224), {}, ["patch_embed", "blocks.0"]),
        ("tresnet_m", (64, 64), {}, ["body.conv1", "body.layer1.0.conv1"]),
    ],
)
def test_boxes_equal_those_of_gradients_in_a_positive_network(name, size, options, layers):
    model = positive(hooked(name, size, **options))
    for layer in layers:
        field = receptive_field(model, layer, "exact")
        rows, columns = field.grid
        cells = [(0, 0), (rows // 2, columns // 2), (rows - 1, columns - 1), (rows // 3, 1)]
        for cell in cells:
            assert field.box(cell) == gradient_box(model, layer, cell), (layer, cell)
        assert field.unknown == ()


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv2_050", "poolformer_s12"])
def test_pixels_outside_the_box_do_not_reach_the_cell_and_those_at_its_edges_do(name):
    """NaN marks the pixels, because no operation of these networks removes it."""
    model = hooked(name, (65, 79))
    layers = [layer.name for layer in model.layers.values() if layer.grid and min(layer.grid) > 3]
    for layer in layers[:: max(1, len(layers) // 5)]:
        if name.startswith("poolformer") and "blocks" in layer:
            continue  # group norm: the whole image
        field = receptive_field(model, layer, "exact")
        rows, columns = field.grid
        for row, column in [(0, columns - 1), (rows // 2, columns // 2), (rows - 1, 1)]:
            left, upper, right, lower = field.box((row, column))

            def reached(
                nans: Tensor, row: int = row, column: int = column, at: str = layer
            ) -> bool:
                image = torch.full((1, 3, 65, 79), 0.5)
                image[..., nans] = float("nan")
                with torch.no_grad(), model.record(at) as recording:
                    model(image)
                cells = model.layers[at].spatial(recording[at])
                return bool(cells[0, :, row, column].isnan().any())

            outside = torch.ones(65, 79, dtype=torch.bool)
            outside[upper:lower, left:right] = False
            assert not outside.any() or not reached(outside), layer
            for edge in (
                (slice(upper, lower), left),
                (slice(upper, lower), right - 1),
                (upper, slice(left, right)),
                (lower - 1, slice(left, right)),
            ):
                inside = torch.zeros(65, 79, dtype=torch.bool)
                inside[edge] = True
                assert reached(inside), (layer, edge)
