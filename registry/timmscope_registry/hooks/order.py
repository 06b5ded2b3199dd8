"""Finds the image order of tokens in models that keep them in another order (Hiera).

Hiera's `Unroll` sorts tokens so that pooling windows are contiguous, and each pooling undoes one
level of that order. Hiera's own `Reroll` restores the image order for each block; if it is applied
to the numbers of the tokens, it returns the permutation.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from timmscope_registry.hooks.layout import Reading
from timmscope_registry.hooks.trace import Call

TokenOrder = Callable[[Call, Reading], tuple[int, ...] | None]
"""A function that `token_orders` returns."""


def token_orders(modules: dict[str, nn.Module], calls: list[Call]) -> TokenOrder:
    """Return a function that gives, for a call's output, the token at each cell of the grid.

    The function returns None if the tokens are in row-major order, as in almost all models.
    """
    # For each Hiera: the prefix of its modules' paths, the index of the call that sorted the
    # tokens, and the permutation for each grid.
    unrolled: list[tuple[str, int, dict[tuple[int, ...], tuple[int, ...]]]] = []
    for path, module in modules.items():
        unroll, reroll = getattr(module, "unroll", None), getattr(module, "reroll", None)
        if not isinstance(unroll, nn.Module) or not isinstance(reroll, nn.Module):
            continue
        start = next((call.order for call in calls if call.module is unroll), None)
        if start is not None:
            unrolled.append((f"{path}." if path else "", start, _permutations(reroll)))

    def order(call: Call, reading: Reading) -> tuple[int, ...] | None:
        if reading.layout != "tokens" or reading.grid is None:
            return None
        for prefix, start, permutations in unrolled:
            if call.path.startswith(prefix) and call.order >= start:
                permutation = permutations.get(reading.grid)
                if permutation != tuple(range(math.prod(reading.grid))):
                    return permutation
        return None

    return order


def _permutations(reroll: nn.Module) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Return the token at each cell in row-major order, for every grid of the model's blocks."""
    schedule = reroll.schedule
    permutations: dict[tuple[int, ...], tuple[int, ...]] = {}
    assert isinstance(schedule, dict)
    for block, (_, size) in schedule.items():
        if tuple(size) not in permutations:
            numbers = torch.arange(math.prod(size)).view(1, -1, 1)
            rerolled = reroll.forward(numbers, block)
            permutations[tuple(size)] = tuple(rerolled.flatten().tolist())
    return permutations
