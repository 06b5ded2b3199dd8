"""Interval bounds: a proof that no change of limited size anywhere changes a prediction."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import field_validator
from torch import Tensor

from timmscope import (
    CertificationOutcome,
    CertificationTechnique,
    HookedModel,
    TechniqueError,
    UnsupportedModel,
)
from timmscope_defence.intervals import Interval, smallest_margin
from timmscope_defence.linear_bounds import LinearBounds

RADII = (1 / 255, 2 / 255, 4 / 255, 8 / 255)


class IntervalBounds(CertificationTechnique):
    """Interval bound propagation proves that a prediction holds for all images in a box.

    `min over ‖δ‖∞ ≤ ε of z_y(x + δ) − z_j(x + δ) > 0` for every class j, by bounds that go through
    the network layer by layer: `W·μ + b ± |W|·r` for affine layers, both ends for activations.
    Changed images stay in [0, 1]. The last linear layer is bounded together with the difference.
    `radius` is the largest of `epsilons` that is proved, 0 if none is.

    The bounds of a network that was not trained for them (`ibp-training`) are far too wide: they
    prove nothing for ImageNet networks at 1/255. They know convolutional and linear layers, batch
    normalisation, pooling, sums, products and common activations, but neither softmax nor layer
    normalisation. The bounds are computed in the model's precision; rounding errors, some 1e-6, are
    not bounded. Cost: one pass for the prediction, and two for each radius that is tried.

    With `method` crown or crown-ibp, the bounds of a layer are linear functions of the image, by
    the library auto_LiRPA, which has to be installed. They are some ten times as narrow, and cost
    far more time and memory; for a network that was trained on intervals they change little.

    Paper:
        - Gowal et al., "On the Effectiveness of Interval Bound Propagation for Training Verifiably
          Robust Models", 2018, arXiv:1810.12715.
        - Zhang, Weng, Chen, Hsieh & Daniel, "Efficient Neural Network Robustness Certification with
          General Activation Functions", NeurIPS 2018, arXiv:1811.00866.
        - Zhang, Chen, Xiao, Gowal, Stanforth, Li, Boning & Hsieh, "Towards Stable and Efficient
          Training of Verifiably Robust Neural Networks", ICLR 2020, arXiv:1906.06316.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: a label is no class of the model, or the model has fewer than two classes.
        ParameterError: a parameter or `batch_size` is out of range, or auto_LiRPA is needed and not
            installed.
        TechniqueError: the bounds of the model are not finite.
        UnsupportedModel: the model is a function or behind defences, or it has a layer that has no
            bounds.
    """

    norm = "linf"

    epsilons: tuple[float, ...] = RADII
    """Radii to try, in pixel units [0, 1]."""
    method: Literal["ibp", "crown-ibp", "crown"] = "ibp"
    """Bounds: `ibp`, intervals; `crown`, linear functions of the image; `crown-ibp`, intervals for
    the hidden layers and linear functions for the logits. The last two need auto_LiRPA."""

    @field_validator("epsilons")
    @classmethod
    def _radii(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or not all(0 < radius <= 1 for radius in value):
            raise ValueError(f"epsilons are {value}: expected radii in pixel units, over 0 to 1")
        return tuple(sorted(set(value)))

    def certify(self, model: HookedModel, images: Tensor, labels: Tensor) -> CertificationOutcome:
        """Predictions `(B,)` and the largest radius that is proved for each.

        Raises:
            ParameterError: auto_LiRPA is needed and not installed.
            TechniqueError: the bounds of the model are not finite.
            UnsupportedModel: the model is a function or behind defences, or it has a layer that
                has no bounds.
        """
        if model.is_function or model.defences:
            what = "is a prediction function" if model.is_function else "is behind defences"
            raise UnsupportedModel(
                f"{model.id} {what}: interval bounds go through the layers of a network alone"
            )
        linear = None if self.method == "ibp" else LinearBounds(model, images, self.method)
        with torch.no_grad():
            predictions = model(images).argmax(1)
            radius = torch.zeros(len(images), dtype=torch.float64)
            left = torch.arange(len(images))
            for epsilon in self.epsilons:
                if linear is None:
                    with self.only(left):
                        logits = model(Interval.around(images[left], epsilon))
                    margin = smallest_margin(logits, predictions[left]).cpu()
                else:
                    margin = linear.smallest_margin(images[left], epsilon, predictions[left]).cpu()
                if not bool(margin.isfinite().all()):
                    raise TechniqueError(
                        f"the bounds of {model.id} at {epsilon:.3g} are not finite, so they prove "
                        "nothing: a compiled function takes no bounds; otherwise choose "
                        "smaller epsilons, or a network trained by ibp-training"
                    )
                if epsilon == self.epsilons[0]:
                    self.note("margin", margin)
                left = left[margin > 0]
                radius[left] = epsilon
                if not len(left):
                    break
        return CertificationOutcome(predictions=predictions, radius=radius)
