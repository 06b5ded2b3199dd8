"""Steps of a given mean size, which do not depend on the scale of a model's gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class NormalisedSteps(torch.optim.Optimizer):
    """Descent in steps `s · g / mean|g|` for each image, with s linear in the number of the step.

    DeepDream, DGN-AM and multifaceted visualisation take such steps.

    Args:
        variables: variables `(B, …)`; each row has its own mean.
        first: size s of the first step.
        last: size of the last step; by default as the first.
        steps: number of steps from first to last.
    """

    def __init__(
        self,
        variables: Iterable[Tensor],
        first: float,
        last: float | None = None,
        steps: int = 1,
    ) -> None:
        super().__init__(variables, {})
        self._first = first
        self._slope = 0.0 if last is None or steps < 2 else (last - first) / (steps - 1)
        self._taken = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step."""
        size = self._first + self._slope * self._taken
        self._taken += 1
        for variable in (one for group in self.param_groups for one in group["params"]):
            if variable.grad is not None:
                rows: Any = variable.grad.flatten(1).abs().mean(1).clamp(min=1e-30)
                rows = rows.reshape(-1, *[1] * (variable.ndim - 1))
                variable.sub_(size * variable.grad / rows)
