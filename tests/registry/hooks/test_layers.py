"""Maps and pooled values of a layer, and the positions of its cells in the image."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from timmscope_registry.errors import LayerNotFound, UnsupportedModel
from timmscope_registry.hooks import Layer, LayerCatalogue, ModelHooks, ensure_torchvision

ensure_torchvision()

import timm  # noqa: E402


def layer(layout: str, shape: tuple[int, ...], **facts: object) -> Layer:
    channels = shape[0] if layout in ("NCHW", "vector") else shape[-1]
    known = {"name": "x", "module_type": "X", "grid": None, "prefix_tokens": 0, "stride": None}
    return Layer(**{**known, "shape": shape, "layout": layout, "channels": channels, "order": 0}
                 | facts)  # fmt: skip


VALUES = torch.arange(2 * 4 * 2 * 3.0).reshape(2, 4, 2, 3)  # (B, C, h, w)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "tokens"])
def test_spatial_and_pooled_are_the_same_for_every_layout(layout: str) -> None:
    facts: dict[str, object] = {"grid": (2, 3)}
    if layout == "NCHW":
        given, shape = VALUES, (4, 2, 3)
    elif layout == "NHWC":
        given, shape = VALUES.permute(0, 2, 3, 1), (2, 3, 4)
    else:
        prefix = torch.full((2, 5, 4), 1e6)
        given, shape = torch.cat([prefix, VALUES.flatten(2).mT], 1), (11, 4)
        facts["prefix_tokens"] = 5
    one = layer(layout, shape, **facts)
    assert torch.equal(one.spatial(given), VALUES)
    torch.testing.assert_close(one.pooled(given), VALUES.mean((2, 3)))


def test_tokens_in_another_order_are_returned_in_image_order() -> None:
    order = (5, 3, 1, 0, 2, 4)  # the token at each cell
    tokens = torch.empty(2, 6, 4)
    tokens[:, torch.tensor(order)] = VALUES.flatten(2).mT
    one = layer("tokens", (6, 4), grid=(2, 3), token_order=order)
    assert torch.equal(one.spatial(tokens), VALUES)
    torch.testing.assert_close(one.pooled(tokens), VALUES.mean((2, 3)))


def test_a_vector_is_a_map_of_one_cell() -> None:
    one = layer("vector", (4,))
    given = torch.randn(2, 4)
    assert torch.equal(one.spatial(given), given[:, :, None, None])
    assert one.pooled(given) is given


def test_tokens_without_a_position_can_be_pooled_but_have_no_map() -> None:
    one = layer("tokens", (1, 4), prefix_tokens=1)
    given = torch.randn(2, 1, 4)
    assert torch.equal(one.pooled(given), given[:, 0])
    with pytest.raises(UnsupportedModel, match="without a position in the image"):
        one.spatial(given)


def test_outputs_that_do_not_fit_are_refused() -> None:
    one = layer("tokens", (7, 4), grid=(2, 3), prefix_tokens=1)
    with pytest.raises(UnsupportedModel, match=r"1 prefix tokens and a 2x3 grid.*has 10 tokens"):
        one.spatial(torch.zeros(2, 10, 4))
    with pytest.raises(UnsupportedModel, match=r"expected .*\('B', 7, 4\).*\(2, 7, 5\)"):
        one.pooled(torch.zeros(2, 7, 5))


def test_catalogue_is_a_mapping_that_prints_as_a_table() -> None:
    catalogue = LayerCatalogue(
        [
            layer("NCHW", (4, 2, 3), name="stem.conv", grid=(2, 3), stride=(4.0, 4.0)),
            layer("vector", (4,), name="head"),
        ],
        aliases={"head#0": "head"},
        refused={"pair": "it returns a tuple, not one tensor"},
    )
    assert list(catalogue) == ["stem.conv", "head"]
    assert catalogue["head#0"] is catalogue["head"]
    assert catalogue.get("nothing") is None
    header, first, second = str(catalogue).splitlines()
    assert " ".join(header.split()) == "layer type layout shape grid prefix channels stride px"
    assert first.split() == ["stem.conv", "X", "NCHW", "4x2x3", "2x3", "-", "4", "4x4"]
    assert second.split() == ["head", "X", "vector", "4", "-", "-", "4", "-"]
    with pytest.raises(LayerNotFound, match=r"'stem.cnv'; nearest: stem\.conv") as error:
        catalogue["stem.cnv"]
    assert error.value.nearest == ("stem.conv",)
    with pytest.raises(LayerNotFound, match="pair is not a layer: it returns a tuple"):
        catalogue["pair"]


SPOTS = ((0.1, 0.2), (0.9, 0.15), (0.35, 0.8), (0.6, 0.55))


LANDSCAPE = {"img_size": (128, 192)}


@pytest.mark.parametrize(
    ("name", "options", "size", "stem", "reach"),
    [
        ("hiera_tiny_224", LANDSCAPE, (128, 192), "blocks.{}", 0),
        ("vit_tiny_patch16_224", LANDSCAPE, (128, 192), "blocks.{}", 0),
        ("swin_tiny_patch4_window7_224", LANDSCAPE, (128, 192), "layers.{}", 0),
        ("mambaout_femto", {}, (128, 192), "stages.{}", 1),  # 7x7 convolutions
        ("mixer_s32_224", {}, (224, 224), "blocks.{}", 0),
        ("cait_xxs24_224", {}, (224, 224), "blocks.{}", 0),
        ("levit_128s", {}, (224, 224), "stages.0.blocks.{}", 1),  # a stem of 3x3 convolutions
    ],
)
def test_a_change_of_the_image_changes_the_cell_at_its_position_most(
    name: str, options: dict[str, object], size: tuple[int, int], stem: str, reach: int
) -> None:
    points = [stem.format(k) for k in range(2 if name == "levit_128s" else 3)]
    torch.manual_seed(0)
    model = timm.create_model(name, **options)
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    hooks = ModelHooks(model, images)
    changed = [images]
    for y, x in SPOTS:
        other = images.clone()
        row, column = int(y * size[0]), int(x * size[1])
        other[:, :, row // 16 * 16 : row // 16 * 16 + 16, column // 16 * 16 :][..., :16] += 1
        changed.append(other)
    with torch.no_grad(), hooks.record(*points) as recording:
        hooks(torch.cat(changed))
    for point in points:
        one = hooks.layers[point]
        assert one.grid is not None
        maps: Tensor = one.spatial(recording[point])
        for (y, x), change in zip(SPOTS, (maps[1:] - maps[:1]).abs().sum(1), strict=True):
            found = divmod(int(change.argmax()), one.grid[1])
            patch = (int(y * size[0]) // 16, int(x * size[1]) // 16)  # of 16 px
            for axis in range(2):
                cell = one.stride[axis]  # the cells that the patch touches
                low = int(patch[axis] * 16 // cell)
                high = math.ceil((patch[axis] + 1) * 16 / cell)
                touched = range(low - reach, high + reach)
                assert found[axis] in touched, (point, found, patch)


def test_hieras_tokens_need_reordering_until_its_third_pooling() -> None:
    hooks = ModelHooks(timm.create_model("hiera_tiny_224"), torch.zeros(1, 3, 224, 224))
    assert hooks.layers["patch_embed"].token_order is None
    for name in ("unroll", "blocks.0", "blocks.1.norm1", "blocks.1", "blocks.2"):
        order = hooks.layers[name].token_order
        assert order is not None
        assert sorted(order) == list(range(len(order)))
    # Three poolings undo the three levels of the paper's unroll.
    assert hooks.layers["blocks.11"].token_order is None


def test_sizes_that_only_look_like_a_grid_are_refused() -> None:
    """At 64 px NesT has 16 blocks of 16 tokens on a 16x16 grid; EfficientViM has 7*7 states."""
    nest = ModelHooks(timm.create_model("nest_tiny", img_size=64), torch.zeros(1, 3, 64, 64))
    block = "levels.0.transformer_encoder.0"
    assert nest.layers["levels.0"].grid == (16, 16)
    with pytest.raises(LayerNotFound, match=r"\(2, 16, 16, 96\) is in blocks or states"):
        nest.layers[block]
    with torch.no_grad(), nest.record(block) as recording:  # it is still a hook point
        nest(torch.zeros(1, 3, 64, 64))
    assert recording[block].shape == (1, 16, 16, 96)

    states = ModelHooks(timm.create_model("efficientvim_m1"), torch.zeros(1, 3, 224, 224))
    with pytest.raises(LayerNotFound, match=r"norm\.0 .* \(2, 49, 128\) is in blocks or states"):
        states.layers["norm.0"]


def test_attention_matrices_are_not_maps_even_where_the_sizes_fit() -> None:
    """At 128 px CaiT has 64 tokens, and 64x64 is half the image's size."""
    model = timm.create_model("cait_xxs24_224", img_size=128)
    hooks = ModelHooks(model, torch.zeros(1, 3, 128, 128))
    assert hooks.layers["blocks.0"].grid == (8, 8)
    for name in ("proj_l", "proj_w", "attn_drop"):
        assert f"blocks.0.attn.{name}" not in hooks.layers
