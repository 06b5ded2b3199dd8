"""Random operations draw from own generators, with the numbers that a global seed would give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timmscope_registry.hooks import ModelHooks, OwnGenerators

ONES = torch.ones(4, 50)
DRAWS = {
    "rand": lambda: torch.rand(2, 3),
    "randn": lambda: torch.randn(40, dtype=torch.float64),
    "randint": lambda: torch.randint(2, 90, (30,)),
    "randint from 0": lambda: torch.randint(90, (30,)),
    "randperm": lambda: torch.randperm(30),
    "rand_like": lambda: torch.rand_like(ONES),
    "randn_like": lambda: torch.randn_like(ONES, dtype=torch.float64),
    "randint_like": lambda: torch.randint_like(ONES, 3, 90),
    "normal": lambda: torch.normal(ONES, 2.0),
    "normal_": lambda: torch.empty(40).normal_(),
    "bernoulli": lambda: torch.bernoulli(ONES / 3),
    "multinomial": lambda: ONES.multinomial(7),
    "truncated": lambda: nn.init.trunc_normal_(torch.empty(40)),
    "orthogonal": lambda: nn.init.orthogonal_(torch.empty(5, 5)),
    "dropout": lambda: F.dropout(ONES, 0.3, True),
    "channels": lambda: F.dropout2d(ONES[None, :, :, None], 0.3, True),
    "alpha dropout": lambda: F.alpha_dropout(ONES, 0.3, True),
    "rrelu": lambda: F.rrelu(-ONES, training=True),
    "attention": lambda: F.scaled_dot_product_attention(*[ONES[None, None]] * 3, dropout_p=0.4),
    "gumbel": lambda: F.gumbel_softmax(ONES),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", DRAWS)
def test_numbers_are_those_after_a_global_seed(name, inference):
    with torch.random.fork_rng(devices=[]), torch.inference_mode(inference):
        torch.manual_seed(7)
        expected = [DRAWS[name]() for _ in range(2)]
        torch.manual_seed(99)
        before = torch.get_rng_state()
        with OwnGenerators(7) as generators:
            drawn = [DRAWS[name]() for _ in range(2)]
        assert torch.equal(torch.get_rng_state(), before)
    assert generators.drawn
    assert not torch.equal(*drawn)
    for one, other in zip(drawn, expected, strict=True):
        assert torch.equal(one, other)


def test_operations_with_a_generator_keep_it():
    generator = torch.Generator().manual_seed(3)
    with OwnGenerators(7) as own:
        drawn = torch.rand(5, generator=generator)
    assert torch.equal(drawn, torch.rand(5, generator=torch.Generator().manual_seed(3)))
    assert not own.drawn


def test_fused_dropout_keeps_a_share_and_has_a_gradient():
    values = torch.ones(100, 100, requires_grad=True)
    with OwnGenerators(7):
        kept, mask = torch.native_dropout(values, 0.25, True)
        again, _ = torch.native_dropout(values, 0.25, True)
    assert torch.equal(kept, mask * torch.tensor(4 / 3))
    assert mask.float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert not torch.equal(kept, again)
    (gradient,) = torch.autograd.grad(kept.sum(), values)
    torch.testing.assert_close(gradient, kept.detach())


class Dropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, True)


@pytest.mark.parametrize(
    ("part", "is_random"),
    [
        (nn.Dropout(0.5), False),
        (nn.RReLU(), False),
        (nn.MultiheadAttention, False),
        (Dropping(), True),
    ],
)
def test_a_model_that_draws_in_eval_mode_is_random(part, is_random):
    if part is nn.MultiheadAttention:
        part = nn.TransformerEncoderLayer(4, 2, dropout=0.5, batch_first=True)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(2), nn.Linear(16, 4), part).train()
    before = torch.get_rng_state()
    assert ModelHooks(model, torch.rand(1, 3, 4, 4, generator=torch.Generator())).is_random is (
        is_random
    )
    assert torch.equal(torch.get_rng_state(), before)
