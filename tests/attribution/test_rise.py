"""RISE against its formula, and masks against what the paper says of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from timmscope import HookedModel, ParameterError, channel, class_logit, technique

RISE = technique("rise")


def test_masks_let_through_p_in_the_mean_at_every_pixel():
    masks = RISE(cells=4, keep=0.3).draw(6000, (20, 26), torch.Generator().manual_seed(0))
    assert masks.shape == (6000, 20, 26)
    assert float(masks.min()) >= 0
    assert float(masks.max()) <= 1
    # A pixel's standard deviation is below √(p(1-p)), 0.46: of the mean below 0.006.
    assert float((masks.mean(0) - 0.3).abs().max()) < 5 * 0.006
    assert float(masks.mean()) == pytest.approx(0.3, abs=0.003)


def test_masks_do_not_depend_on_how_many_are_drawn_together():
    whole = RISE().draw(10, (16, 16), torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    parts = [RISE().draw(count, (16, 16), generator) for count in (1, 4, 5)]
    assert torch.equal(whole, torch.cat(parts))


def test_a_mask_is_a_grid_enlarged_and_shifted_by_less_than_a_cell():
    """Each mask equals one of the crops of its own grid, made one at a time."""
    technique = RISE(cells=3)
    (mask,) = technique.draw(1, (9, 9), torch.Generator().manual_seed(2))
    numbers = torch.rand(11, generator=torch.Generator().manual_seed(2))
    grid = (numbers[2:] < 0.5).float().view(1, 1, 3, 3)
    whole = nn.functional.interpolate(grid, (12, 12), mode="bilinear")[0, 0].clamp(0, 1)
    crops = [whole[top : top + 9, left : left + 9] for top in range(3) for left in range(3)]
    assert any(torch.equal(mask, crop) for crop in crops)


def by_formula(model, image, masks, score, keep):
    """`Σ_i S(I ⊙ M_i) M_i / (N p)`, one forward a mask."""
    colour = torch.tensor(model.mean, dtype=image.dtype)[:, None, None]
    total = torch.zeros_like(image[0])
    for mask in masks.to(image):
        total += score(model((image * mask + colour * (1 - mask))[None])[0]) * mask
    return total / (len(masks) * keep)


def test_a_map_is_the_formula_with_the_softmax_probability(pooled_linear, noise):
    attribution = RISE(masks=20, cells=3, keep=0.4)
    ours = attribution(pooled_linear, noise, class_logit([0, 3, 1]), seed=9).raw
    for row, index in enumerate([0, 3, 1]):
        generator = torch.Generator().manual_seed(9 * 1_000_003 + row)
        masks = attribution.draw(20, (8, 8), generator)
        expected = by_formula(
            pooled_linear, noise[row], masks, lambda logits, i=index: logits.softmax(0)[i], 0.4
        )
        assert torch.allclose(ours[row].double(), expected.detach(), rtol=1e-5)


def test_what_is_no_class_is_weighted_by_its_value(pooled_linear, noise):
    attribution = RISE(masks=20, cells=3)
    ours = attribution(pooled_linear, noise[:1], 2 * class_logit(1) - class_logit(3)).raw[0]
    masks = attribution.draw(20, (8, 8), torch.Generator().manual_seed(0))
    expected = by_formula(
        pooled_linear, noise[0], masks, lambda logits: 2 * logits[1] - logits[3], 0.5
    )
    assert torch.allclose(ours.double(), expected.detach(), rtol=1e-5)
    assert bool(RISE(masks=5)(pooled_linear, noise[:1], channel("features", 2)).raw.any())


class OnePixel(nn.Module):
    num_classes = 1

    def forward(self, images):
        return images[:, :1, 4, 11]


def test_a_model_of_one_pixel_peaks_there():
    model = HookedModel(OnePixel(), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 16, 16))
    result = RISE(masks=3000, cells=8)(model, torch.ones(1, 3, 16, 16), 2 * class_logit(0))
    (peak,) = [row["peak_yx_px"] for row in result.summary()]
    assert abs(peak[0] - 4) <= 1
    assert abs(peak[1] - 11) <= 1


def test_the_seed_decides_and_nothing_else(pooled_linear, noise):
    attribution = RISE(masks=30)
    first = attribution(pooled_linear, noise, 1, seed=3).raw
    torch.manual_seed(123)
    assert torch.equal(attribution(pooled_linear, noise, 1, seed=3).raw, first)
    pieces = attribution(pooled_linear, noise, 1, seed=3, batch_size=2).raw
    assert torch.allclose(pieces, first, rtol=1e-6)
    assert not torch.equal(attribution(pooled_linear, noise, 1, seed=4).raw, first)


@pytest.mark.parametrize(
    ("field", "value"), [("masks", 0), ("cells", 0), ("keep", 0.0), ("keep", 1)]
)
def test_masks_that_cannot_be_are_refused(field, value):
    with pytest.raises(ParameterError, match=f"parameter '{field}' of rise"):
        RISE(**{field: value})
