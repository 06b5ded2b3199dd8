"""Attention rollout: the attention of all blocks of a vision transformer, multiplied."""

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
    """Attention rollout multiplies the attention matrices of all blocks of a vision transformer.

    `Π_l rownorm(mean_heads(A_l) + I)`: the rows of the tokens that the classifier reads (the class
    token, or all patches), averaged, at the columns of the patches. The identity I stands for the
    residual connection. Rollout follows where information comes from and not what it means, so the
    map is the same for every class. Prefix tokens take part in the product but have no place in the
    map.

    Paper:
        Abnar & Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, arXiv:2005.00928.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: the objective does not fit the model.
        ParameterError: `batch_size` is less than 1.
        UnsupportedModel: the model has no attention that is one matrix over all tokens.
        TechniqueError: the objective is not at the model's output, it depends on no token, or the
            map is the same in all cells.
    """

    def attribute(
        self, model: HookedModel, images: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor]:
        """Maps `(B, h, w)` and scores `(B,)`.

        Raises:
            UnsupportedModel: the model has no attention that is one matrix over all tokens.
            TechniqueError: the objective is not at the model's output.
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
