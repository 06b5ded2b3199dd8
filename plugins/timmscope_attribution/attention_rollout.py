"""Attention rollout: where the classifier's information comes from, through all blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from timmscope import AttributionTechnique, HookedModel, Objective
from timmscope_attribution.attention import (
    as_grid,
    attend,
    attention_points,
    require_output,
    tokens_read,
)


class AttentionRollout(AttributionTechnique):
    """Attention rollout (Abnar & Zuidema, ACL 2020): `Π_l rownorm(mean_heads(A_l) + I)`.

    The rows of the tokens that the classifier reads (the class token, or all patches), at the
    patches. It follows where information comes from and not what it means, so every class has the
    same map. Prefix tokens take part in the product and have no place in the map.
    """

    def attribute(
        self, model: HookedModel, images: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor]:
        """Maps `(B, h, w)` and scores `(B,)`.

        Raises:
            UnsupportedModel: the model has no attention over all tokens.
            TechniqueError: the objective is not of the model's output.
        """
        require_output(self.title(), objective)
        points = attention_points(model)
        product: list[Tensor] = []

        def roll(point: str, matrix: Tensor) -> None:
            step = matrix.mean(1) + torch.eye(matrix.shape[-1]).to(matrix)
            step = step / step.sum(-1, keepdim=True)
            product[:] = [step @ product[0] if product else step]

        score = attend(model, images, objective, points, roll)
        last = next(reversed(points.values()))
        read = tokens_read(model, images, objective, last).to(product[0])
        return as_grid(last, torch.einsum("bt,bts->bs", read, product[0])), score
