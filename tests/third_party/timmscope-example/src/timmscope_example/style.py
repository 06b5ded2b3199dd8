"""Style as a distribution of colours."""

import torch
from torch import Tensor

from timmscope import HookedModel, ParameterError, StyleOutcome, StyleTechnique


class HistogramMatch(StyleTechnique):
    """Each channel's values are exchanged for the style's of the same rank."""

    def stylize(
        self,
        model: HookedModel,
        content: Tensor | None,
        styles: list[Tensor],
        weights: list[float],
    ) -> StyleOutcome:
        """One image; the loss is the mean distance between the sorted values."""
        if content is None:
            raise ParameterError(f"{self.title()} needs a content image", parameter="content")
        flat = content.flatten(2)
        wanted = torch.zeros_like(flat)
        for style, weight in zip(styles, weights, strict=True):
            ranked = style.flatten(2).sort(2).values
            place = torch.linspace(0, ranked.shape[2] - 1, flat.shape[2]).round().long()
            wanted += weight * ranked[:, :, place]
        matched = torch.empty_like(flat).scatter_(2, flat.argsort(2), wanted)
        losses = [(each.sort(2).values - wanted).abs().mean() for each in (flat, matched)]
        image = matched.reshape(content.shape).clamp(0, 1)
        return StyleOutcome(image, {"total": torch.stack(losses)})
