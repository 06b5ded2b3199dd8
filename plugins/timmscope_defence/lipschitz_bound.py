"""Certificates by a Lipschitz constant: how far an image is from any other prediction at least."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    Ball,
    CertificationOutcome,
    CertificationTechnique,
    Goal,
    HookedModel,
    TechniqueError,
    UnsupportedModel,
    image_generators,
    images_per_pass,
)
from timmscope_defence.extreme_values import largest_possible
from timmscope_defence.lipschitz import lipschitz_of

_NAMED = 6
"""Number of layers that a note names."""


class LipschitzBound(CertificationTechnique):
    """A Lipschitz bound certifies what a network cannot change by a small step anywhere.

    `R = (z_c(x) − max over j ≠ c of z_j(x)) / (√2 · L)`, where c is the prediction and L bounds
    `‖z(x) − z(x')‖₂ / ‖x − x'‖₂` for all images, in pixel units: no change of L2 norm below R
    changes the prediction. L is the product over the layers, with the sum over both branches of a
    residual connection: the largest singular value of a linear layer or convolution (of the
    convolution at the size of its input, by power iteration), `max |γ| / √(σ² + ε)` of batch
    normalisation in eval mode, the largest slope of an activation, and `1 / min(std)` for the
    normalisation of the images. `global_bound` is L, and the notes have its logarithm and the
    layers that stretch most.

    A product of many layers proves nothing: it is above 10^10 for usual networks, and the notes say
    so. It is of use for small networks, above all those of `lipschitz-training`. Beside it stands
    an estimate, the note `clever`: the margin divided by the largest slope that extreme value
    theory expects within `clever_radius` of the image, from the slopes at random points. It is no
    proof, and the true radius is usually between the two.

    Norms are computed to 1e-5 and enlarged by 5e-5; rounding errors of the logits are not bounded.
    Networks with softmax, layer normalisation or products of activations are refused. Cost: two
    passes per image, `clever_batches · clever_samples` forward and backward passes per image, and
    50 to 1,000 passes of each convolution, once for each size of image.

    Paper:
        - Tsuzuku, Sato & Sugiyama, "Lipschitz-Margin Training: Scalable Certification of
          Perturbation Invariance for Deep Neural Networks", NeurIPS 2018, arXiv:1802.04034.
        - Weng, Zhang, Chen, Yi, Su, Gao, Hsieh & Daniel, "Evaluating the Robustness of Neural
          Networks: An Extreme Value Theory Approach", ICLR 2018, arXiv:1801.10578.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: a label is no class of the model, or the model has fewer than two classes.
        ParameterError: a parameter or `batch_size` is out of range.
        TechniqueError: the bound or the gradient is not finite.
        UnsupportedModel: the model is a function or behind defences, or it has a layer that has no
            bound.
    """

    norm = "l2"

    clever_batches: int = Field(default=10, ge=0)
    """Number of batches of random points whose largest slopes give the estimate; 0 for none."""
    clever_samples: int = Field(default=16, ge=1)
    """Number of random points in each of these batches."""
    clever_radius: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    """Radius around the image in which they are, in L2 and pixel units."""

    def certify(self, model: HookedModel, images: Tensor, labels: Tensor) -> CertificationOutcome:
        """Predictions `(B,)`, radii, and the Lipschitz constant of the logits.

        Raises:
            TechniqueError: the bound is not finite.
            UnsupportedModel: the model is a function or behind defences, or it has a layer that
                has no bound.
        """
        if model.is_function or model.defences:
            what = "is a prediction function" if model.is_function else "is behind defences"
            raise UnsupportedModel(
                f"{model.id} {what}: a Lipschitz bound is of the layers of a network alone"
            )
        bound = lipschitz_of(model, model.module, images)
        with torch.no_grad():
            logits = model(images).double()
        two, classes = logits.topk(2, 1)
        margin = (two[:, 0] - two[:, 1]).cpu()
        if not math.isfinite(bound.constant) or not bool(margin.isfinite().all()):
            raise TechniqueError(
                f"the Lipschitz bound or the logits of {model.id} are not finite, so they prove "
                "nothing: check that its weights are finite"
            )
        steepest, all_images = math.sqrt(2) * bound.constant, math.sqrt(images[0].numel())
        if self.clever_batches:
            self._note_estimates(model, images, classes[:, 0], margin, steepest)
        self.note("log10_lipschitz", math.log10(bound.constant) if bound.constant else None)
        largest = sorted(bound.factors.found, key=lambda found: -found[1])[:_NAMED]
        self.note("largest_factors", ", ".join(f"{name} {value:.3g}" for name, value in largest))
        return CertificationOutcome(
            predictions=classes[:, 0],
            radius=margin / steepest if steepest else torch.full_like(margin, all_images),
            global_bound=bound.constant,
        )

    def _note_estimates(
        self,
        model: HookedModel,
        images: Tensor,
        classes: Tensor,
        margin: Tensor,
        steepest: float,
    ) -> None:
        """Note the radius by CLEVER, and the largest sampled slope of each image's margin.

        What is expected of a slope is at most what is proved, `steepest`.
        """
        slopes, radii = [], []
        for row, generator in enumerate(image_generators(len(images))):
            with self.only(torch.tensor([row])):
                sampled = self._slopes(model, images[row : row + 1], classes[row], generator)
            largest = float(sampled.max())
            slopes.append(largest)
            expected = largest_possible(sampled.view(self.clever_batches, -1).amax(1))
            expected = min(expected, steepest)
            reach = float(margin[row]) / expected if expected > 0 else math.inf
            radii.append(min(self.clever_radius, reach))
        self.note("clever", radii)
        self.note("largest_slope", slopes)

    def _slopes(
        self, model: HookedModel, image: Tensor, label: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Norms of the margin's gradient at random points around an image `(1, C, H, W)`."""
        ball, found = Ball(norm="l2", epsilon=self.clever_radius), []
        left, step = self.clever_batches * self.clever_samples, images_per_pass(model, image)
        while left:
            some = min(step, left)
            around = image.expand(some, -1, -1, -1)
            points = (around + ball.sample(around, [generator] * some)).clamp(0, 1)
            goal = Goal(labels=label.expand(some))
            _, gradient = goal.gradient(model, points, "margin")
            found.append(gradient.flatten(1).double().norm(dim=1).cpu())
            left -= some
        return torch.cat(found)
