"""A model that draws random numbers in eval mode draws them from the call's seed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timmscope import HookedModel, match, technique

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Dropping(nn.Module):
    """Drops features in eval mode too."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.conv(x).relu(), 0.4, True).mean((2, 3)))


@pytest.fixture
def model() -> HookedModel:
    torch.manual_seed(0)
    return HookedModel(Dropping(), mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(3, 8, 8))


RUNS = {
    "saliency": lambda model, seed: technique("saliency")()(model, IMAGES, "top", seed=seed).maps,
    "occlusion": lambda model, seed: (
        technique("occlusion")(patch_px=4, stride_px=4)(model, IMAGES, "class:1", seed=seed).maps
    ),
    "pgd": lambda model, seed: technique("pgd")(steps=3)(model, IMAGES, seed=seed).images,
    "activation-maximization": lambda model, seed: (
        technique("activation-maximization")(steps=3)(model, "class:1", seed=seed).final_scores
    ),
    "feature-inversion": lambda model, seed: (
        technique("feature-inversion")(steps=3)(
            model, match("conv", images=IMAGES), seed=seed
        ).final_scores
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_seed_decides_and_the_process_is_undisturbed(model, name):
    run = RUNS[name]
    assert model.hooks.is_random
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = run(model, 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(run(model, 3), first)
    assert not torch.equal(run(model, 4), first)


def test_threads_get_what_one_gets_alone(model):
    alone = [RUNS["saliency"](model, seed) for seed in range(4)]
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: RUNS["saliency"](model, seed), range(4)))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, alone, together))
