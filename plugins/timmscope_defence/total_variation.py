"""Total variation denoising before the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from timmscope import DefenceTechnique


class TotalVariation(DefenceTechnique):
    """Total variation denoising gives the image of few edges that is nearest to an image.

    `x' = argmin over z of ‖z − x‖² / 2 + λ · Σ ‖∇z‖`, for each channel, where ∇ are the differences
    to the pixel below and to the right, and the sum is over pixels (Rudin, Osher & Fatemi). It is
    solved by `steps` steps of the fast gradient projection of Beck & Teboulle on the dual problem.
    Guo et al. drop random pixels before; here all are kept, so that the defence is not random. A
    gradient passes unchanged (straight-through): denoising is nearly the identity, and its own
    gradient costs many times more. Cost: about 60 ms per image of 224×224.

    Paper:
        - Guo, Rana, Cissé & van der Maaten, "Countering Adversarial Images using Input
          Transformations", ICLR 2018, arXiv:1711.00117.
        - Beck & Teboulle, "Fast Gradient-Based Algorithms for Constrained Total Variation Image
          Denoising and Deblurring Problems", IEEE Transactions on Image Processing 2009,
          doi:10.1109/TIP.2009.2028250.

    Raises:
        ImageError: the images are not in [0, 1].
        ObjectiveError: the model has no class of a label's name or index, or has no classes.
        ParameterError: a parameter or `batch_size` is out of range.
        TechniqueError: the images are changed in shape or leave [0, 1].
    """

    backward = "identity"

    weight: float = Field(default=0.03, gt=0, allow_inf_nan=False)
    """Weight λ of the total variation; edges lower than about twice the weight disappear."""
    steps: int = Field(default=30, ge=1)
    """Number of steps."""

    def transform(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Descend in the dual problem, `p ← Π(p + ∇ z / (8 λ))`, with Nesterov's momentum."""
        last = dual = torch.stack([torch.zeros_like(images)] * 2)
        pace = 1.0
        for _ in range(self.steps):
            denoised = images - self.weight * _divergence(dual)
            moved = dual + _differences(denoised) / (8 * self.weight)
            moved = moved / moved.norm(dim=0).clamp(min=1)
            following = (1 + (1 + 4 * pace**2) ** 0.5) / 2
            dual = moved + (pace - 1) / following * (moved - last)
            last, pace = moved, following
        return (images - self.weight * _divergence(last)).clamp(0, 1)


def _differences(images: Tensor) -> Tensor:
    """Differences to the pixel below and to the right, `(2, B, C, H, W)`; 0 at the last."""
    below = functional.pad(images.diff(dim=2), (0, 0, 0, 1))
    right = functional.pad(images.diff(dim=3), (0, 1))
    return torch.stack([below, right])


def _divergence(dual: Tensor) -> Tensor:
    """Return the transpose of the differences, `(B, C, H, W)`."""
    below, right = dual
    rows = functional.pad(below[..., :-1, :], (0, 0, 1, 0)) - functional.pad(
        below[..., :-1, :], (0, 0, 0, 1)
    )
    columns = functional.pad(right[..., :-1], (1, 0)) - functional.pad(right[..., :-1], (0, 1))
    return rows + columns
