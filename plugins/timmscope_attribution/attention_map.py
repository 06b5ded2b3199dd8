"""Attention map: the patches that one block of a vision transformer attends to."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from timmscope import AttributionTechnique, HookedModel, Objective, ParameterError
from timmscope_attribution.attention import (
    as_grid,
    attend,
    attention_points,
    require_output,
    tokens_read,
)


class AttentionMap(AttributionTechnique):
    """Shows which patches one block of a vision transformer attends to.

    `softmax(Q Kᵀ / √d)` as the block applies it: the rows of the tokens that the classifier reads
    (the class token, or all patches), averaged, at the columns of the patches. It uses no class, so
    the map is the same for every class.

    Paper:
        - Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser & Polosukhin, "Attention Is All
          You Need", NeurIPS 2017, arXiv:1706.03762, defines the matrix.
        - Caron, Touvron, Misra, Jégou, Mairal, Bojanowski & Joulin, "Emerging Properties in
          Self-Supervised Vision Transformers", ICCV 2021, arXiv:2104.14294, shows its heads.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: the objective does not fit the model.
        ParameterError: there is no such block or head, or `batch_size` is less than 1.
        UnsupportedModel: the model has no attention that is one matrix over all tokens.
        TechniqueError: the objective is not at the model's output, it depends on no token, or the
            map is the same in all cells.
    """

    block_index: int = -1
    """Index of the block, from 0; -1 is the last."""
    head: int | None = Field(default=None, ge=0)
    """Index of the head, from 0; by default the mean of all."""

    def attribute(
        self, model: HookedModel, images: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor]:
        """Maps `(B, h, w)` and scores `(B,)`.

        Raises:
            ParameterError: there is no such block or head.
            UnsupportedModel: the model has no attention that is one matrix over all tokens.
            TechniqueError: the objective is not at the model's output.
        """
        require_output(self.title(), objective)
        points = attention_points(model)
        names = list(points)
        if not -len(names) <= self.block_index < len(names):
            raise ParameterError(
                f"{model.id} has blocks 0 to {len(names) - 1}, "
                f"there is no block {self.block_index}",
                parameter="block_index",
            )
        block = names[self.block_index]
        matrices: list[Tensor] = []

        def keep(point: str, matrix: Tensor) -> None:
            if self.head is None:
                matrices.append(matrix.mean(1))
            elif self.head < matrix.shape[1]:
                matrices.append(matrix[:, self.head].clone())
            else:
                raise ParameterError(
                    f"{point} has heads 0 to {matrix.shape[1] - 1}, there is no head {self.head}",
                    parameter="head",
                )

        layer = points[block]
        score = attend(model, images, objective, {block: layer}, keep)
        last = points[names[-1]]
        read = tokens_read(model, images, objective, last).to(matrices[0])
        return as_grid(layer, torch.einsum("bt,bts->bs", read, matrices[0])), score
