"""A proof by rounding."""

import torch
from pydantic import Field
from torch import Tensor

from timmscope import CertificationOutcome, CertificationTechnique, HookedModel


class Rounding(CertificationTechnique):
    """Certifies the model behind a rounding of pixels: what rounds alike is predicted alike."""

    norm = "linf"

    levels: int = Field(default=4, ge=2, le=256)
    """How many values a pixel may have."""

    def certify(self, model: HookedModel, images: Tensor, labels: Tensor) -> CertificationOutcome:
        """The radius is the distance of the pixel that is nearest to a border between levels."""
        scaled = images * (self.levels - 1)
        with torch.no_grad():
            predictions = model(scaled.round() / (self.levels - 1)).argmax(1)
        nearest = (0.5 - (scaled - scaled.round()).abs()).flatten(1).amin(1)
        return CertificationOutcome(predictions=predictions, radius=nearest / (self.levels - 1))
