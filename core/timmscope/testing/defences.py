"""Checks of defences: shape and range, random numbers, and the gradient that they promise."""

from __future__ import annotations

import torch
from torch import Tensor

from timmscope.draws import image_positions
from timmscope.models import Defence
from timmscope.models.defence import defended_images
from timmscope.techniques.lookup import technique
from timmscope.testing.conformance import Case, check
from timmscope.testing.models import tiny_images
from timmscope_registry import UnsupportedModel

ROUNDING = 1e-5
"""Largest difference between an image alone and the same image in a batch."""
SLOPE = 0.02
"""Largest error of a gradient against differences, relative to its size."""


def _defence(case: Case) -> Defence:
    made: object = technique(case.entry.id)(**case.parameters)
    assert isinstance(made, Defence)
    return made


@check("technique", base="defence")
def defence_keeps_shape_and_range(case: Case) -> None:
    """A defence returns images of the same shape in [0, 1], for black, white and wide ones too."""
    defence, noise = _defence(case), tiny_images(2)
    for images in (noise, torch.zeros_like(noise), torch.ones_like(noise), noise[..., :20, :]):
        defended_images([defence], images)


@check("technique", base="defence")
def defence_changes_each_image_for_itself(case: Case) -> None:
    """Each image of a batch becomes what it becomes alone."""
    defence, images = _defence(case), tiny_images(3)
    together = defended_images([defence], images)
    for row in range(3):
        with image_positions([row]):
            alone = defended_images([defence], images[row : row + 1])
        difference = float((alone - together[row]).abs().max())
        assert difference <= ROUNDING, f"image {row} differs by {difference:.2g} in a batch"


@check("technique", base="defence")
def defence_draws_as_it_says(case: Case) -> None:
    """Equal generators give equal images; other ones others, exactly if it says it is random."""
    defence, images = _defence(case), tiny_images(3)
    one, same, other = (_with_seed(defence, images, seed) for seed in (1, 1, 2))
    assert torch.equal(one, same), "it draws from other generators than those that it is given"
    if defence.random:
        assert not torch.equal(one, other), "random is True, and it draws no numbers"


def _with_seed(defence: Defence, images: Tensor, seed: int) -> Tensor:
    with image_positions(None, seed):
        return defended_images([defence], images)


@check("technique", base="defence")
def defence_passes_the_gradient_that_it_says(case: Case) -> None:
    """The gradient is that of differences (exact), unchanged (identity), or refused (none)."""
    defence = _defence(case)
    images = (0.25 + 0.5 * tiny_images(2)).double().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(images.shape, generator=generator, dtype=torch.float64)

    def score(given: Tensor) -> Tensor:
        return (weights * defended_images([defence], given)).sum()

    if defence.backward == "none":
        try:
            score(images)
        except UnsupportedModel:
            return
        raise AssertionError("backward is 'none', and a gradient passes")
    (gradient,) = torch.autograd.grad(score(images), images)
    if defence.backward == "identity":
        assert torch.equal(gradient, weights), "backward is 'identity', and the gradient changes"
        return
    with torch.no_grad():
        step = 1e-3 * torch.randn(images.shape, generator=generator, dtype=torch.float64)
        rise = float(score(images + step) - score(images - step)) / 2
        scale = float(gradient.norm() * step.norm())
    error = abs(rise - float((gradient * step).sum()))
    assert scale > 0, "backward is 'exact', and the gradient is zero"
    assert error <= SLOPE * scale, f"the gradient is off by {error / scale:.2g} of its size"
