"""Fewer grey levels before the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from timmscope import DefenceTechnique


class BitDepth(DefenceTechnique):
    """Bit depth reduction rounds pixels to few levels, so that smaller changes disappear.

    `x' = round(x · (2ᵇ − 1)) / (2ᵇ − 1)` with b bits per channel. A gradient passes unchanged
    (straight-through), because rounding has no useful gradient of its own; an attack that follows
    this gradient breaks the defence (Athalye, Carlini & Wagner, ICML 2018, arXiv:1802.00420). Cost:
    nearly nothing.

    Paper:
        Xu, Evans & Qi, "Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks",
        NDSS 2018, arXiv:1704.01155.

    Raises:
        ImageError: the images are not in [0, 1].
        ObjectiveError: the model has no class of a label's name or index, or has no classes.
        ParameterError: a parameter or `batch_size` is out of range.
        TechniqueError: the images are changed in shape or leave [0, 1].
    """

    backward = "identity"

    bits: int = Field(default=4, ge=1, le=8)
    """Bits b per channel; the paper takes 4 or 5 for photographs, and 1 for digits."""

    def transform(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Round every value."""
        steps = float(2**self.bits - 1)
        return (images * steps).round() / steps
