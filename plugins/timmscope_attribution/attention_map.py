"""Raw attention: what one block of a vision transformer looks at."""

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
    """The attention of one block as applied: `softmax(Q Kᵀ / √d)` of the tokens that matter.

    The rows of the tokens that the classifier reads (the class token, or all patches), at the
    patches. Vaswani et al. (NeurIPS 2017) define it; Caron et al. (ICCV 2021) show its heads. The
    same for every class.
    """

    block_index: int = -1
    """Which block's, from 0; -1 is the last."""
    head: int | None = Field(default=None, ge=0)
    """Which head's, from 0; by default the mean of all."""

    def attribute(
        self, model: HookedModel, images: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor]:
        """Maps `(B, h, w)` and scores `(B,)`.

        Raises:
            ParameterError: there is no such block or head.
            UnsupportedModel: the model has no attention over all tokens.
            TechniqueError: the objective is not of the model's output.
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
        chosen = names[self.block_index]
        seen: list[Tensor] = []

        def keep(point: str, matrix: Tensor) -> None:
            if self.head is None:
                seen.append(matrix.mean(1))
            elif self.head < matrix.shape[1]:
                seen.append(matrix[:, self.head].clone())
            else:
                raise ParameterError(
                    f"{point} has heads 0 to {matrix.shape[1] - 1}, there is no head {self.head}",
                    parameter="head",
                )

        layer = points[chosen]
        score = attend(model, images, objective, {chosen: layer}, keep)
        last = points[names[-1]]
        read = tokens_read(model, images, objective, last).to(seen[0])
        return as_grid(layer, torch.einsum("bt,bts->bs", read, seen[0])), score
