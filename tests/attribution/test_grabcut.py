"""Cutting out what a map points at, on pictures whose object is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from timmscope import HookedModel, ParameterError, PluginError, TechniqueError, technique

pytest.importorskip("cv2")
GrabCut = technique("grabcut")
SIZE = 48


class Red(nn.Module):
    """Likes red at a few places of the image and red alone."""

    num_classes = 1

    def forward(self, x):
        return (x[:, 0] - x[:, 1])[:, 14:26, 16:28].square().mean((1, 2))[:, None]


@pytest.fixture
def model() -> HookedModel:
    return HookedModel(Red(), mean=(0,) * 3, std=(1,) * 3, input_size=(3, SIZE, SIZE))


@pytest.fixture
def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """A red disc and a red speck on green, under a little noise; the disc's mask."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    disc = (y - 20) ** 2 + (x - 22) ** 2 < 12**2
    speck = (y > 42) & (x > 42)
    image = torch.where(disc | speck, torch.tensor([0.8, 0.1, 0.1])[:, None, None],
                        torch.tensor([0.1, 0.6, 0.2])[:, None, None])  # fmt: skip
    noise = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 0.05
    return (image + noise)[None], disc


def overlap(mask, truth):
    both = ((mask > 0) & truth).sum()
    return float(both / ((mask > 0) | truth).sum())


def test_the_object_is_cut_out_from_a_few_salient_pixels(model, scene):
    image, disc = scene
    result = GrabCut()(model, image, 0)
    assert set(result.raw.unique().tolist()) == {0.0, 1.0}
    assert overlap(result.raw[0], disc) > 0.98
    both = GrabCut(largest=False)(model, image, 0).raw[0]
    assert bool(both[45, 45])
    assert not bool(result.raw[0, 45, 45])


def test_a_map_of_any_origin_will_do(scene):
    image, disc = scene
    heat = torch.zeros(1, SIZE, SIZE)
    heat[0, 12:26, 14:28] = 1
    heat[0, :14] -= 1
    assert overlap(GrabCut().segment(image, heat)[0], disc) > 0.98


@pytest.mark.parametrize("saliency", ["occlusion", "input-x-gradient"])
def test_any_attribution_can_point(model, scene, saliency):
    image, disc = scene
    assert overlap(GrabCut(saliency=saliency, iterations=3)(model, image, 0).raw[0], disc) > 0.9


def test_the_seed_decides_and_images_do_not_disturb_each_other(model, scene):
    image, _ = scene
    batch = torch.cat([image, image.flip(3), image.flip(2)])
    heats = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) + batch[:, 0]
    once = GrabCut().segment(batch, heats)
    assert torch.equal(GrabCut().segment(batch, heats), once)
    assert torch.equal(GrabCut().segment(batch[:1], heats[:1]), once[:1])


def test_a_map_of_one_value_is_refused(scene):
    with pytest.raises(TechniqueError, match="too many of its values are the same"):
        GrabCut().segment(scene[0], torch.ones(1, SIZE, SIZE))


def test_what_points_must_be_another_attribution(model, scene):
    for name in ("grabcut", "pgd"):
        with pytest.raises(ParameterError, match="name an attribution"):
            GrabCut(saliency=name)(model, scene[0], 0)
    with pytest.raises(PluginError, match="unknown technique 'saliensy'"):
        GrabCut(saliency="saliensy")(model, scene[0], 0)
    with pytest.raises(ParameterError, match="background must be the lower one"):
        GrabCut(background=0.9, foreground=0.5)
