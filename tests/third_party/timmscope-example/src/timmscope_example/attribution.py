"""A map that knows no model."""

import torch
from pydantic import Field
from torch import Tensor

from timmscope import AttributionTechnique, HookedModel, Objective


class CentreBias(AttributionTechnique):
    """A Gaussian in the middle: what an explanation has to beat, since objects are mostly there."""

    width: float = Field(default=0.25, gt=0)
    """Its standard deviation, as a share of the image's sides."""

    def attribute(self, model: HookedModel, images: Tensor, objective: Objective) -> Tensor:
        """The same map for every image, `(B, H, W)`."""
        sides = [torch.linspace(-0.5, 0.5, size) for size in images.shape[2:]]
        rows, columns = (torch.exp(-0.5 * (side / self.width) ** 2) for side in sides)
        return (rows[:, None] * columns).expand(len(images), -1, -1)
