"""Randomised smoothing: the class found most often under noise, and a radius in which it stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import NormalDist

import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    CertificationOutcome,
    CertificationTechnique,
    HookedModel,
    TechniqueError,
    image_generators,
    images_per_forward,
    noise_like,
    task,
)
from timmscope_defence.binomial import lower_bound, needed_hits

ABSTAINS = -1


class RandomizedSmoothing(CertificationTechnique):
    """Randomised smoothing certifies the class that a model finds most often under Gaussian noise.

    `R = σ · Φ⁻¹(p)`, where p is the exact (Clopper–Pearson) lower bound, at confidence 1 − α, of
    the probability that the model finds class c in the image plus noise of standard deviation σ.
    The class c is chosen by `n0` samples, and p is estimated from `n` others; the technique
    abstains if p is below 1/2. The certificate is of the smoothed classifier, which answers with
    the most probable class under noise, not of the model alone: no change of L2 norm below R
    changes its answer, with probability 1 − α for each image.

    Noise is in pixel units and added before the normalisation. Noisy images are not clipped to
    [0, 1], because the proof needs Gaussian noise; a model may clip them itself. The largest
    possible radius is `σ · Φ⁻¹(α^(1/n))`: 2.5 σ for the defaults, 3.8 σ for the 100,000 samples of
    the paper. Models that were not trained with noise (`noise-training`) are seldom right under it,
    unless a denoiser is before them: a defence of the model, or a part of its module, gets the
    noisy images, and the certificate is of both. Cost: at most n0 + n forward passes per image;
    sampling ends early once the class can no longer reach 1/2.

    Paper:
        Cohen, Rosenfeld & Kolter, "Certified Adversarial Robustness via Randomized Smoothing",
        ICML 2019, arXiv:1902.02918.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: a label is no class of the model, or the model has fewer than two classes.
        ParameterError: a parameter or `batch_size` is out of range.
        TechniqueError: the model returns NaN for a noisy image.
    """

    norm = "l2"

    sigma: float = Field(default=0.25, gt=0, allow_inf_nan=False)
    """Standard deviation σ of the noise, in pixel units [0, 1]; 0.25 is 64 grey levels."""
    n0: int = Field(default=100, ge=1)
    """Number of samples that choose the class."""
    n: int = Field(default=1000, ge=1)
    """Number of samples that estimate its probability; the paper uses 100,000."""
    alpha: float = Field(default=0.001, gt=0, lt=0.5)
    """Probability α, for each image, that its certificate is wrong."""

    def certify(self, model: HookedModel, images: Tensor, labels: Tensor) -> CertificationOutcome:
        """Classes and radii `(B,)`; the noise of an image depends only on the seed and its index.

        Raises:
            TechniqueError: the model returns NaN for a noisy image.
        """
        found, needed = [], needed_hits(self.n, self.alpha)
        for row, generator in enumerate(image_generators(len(images))):
            with self.only(torch.tensor([row])):
                found.append(self._certify_one(model, images[row : row + 1], generator, needed))
        predictions, radii = zip(*found, strict=True)
        return CertificationOutcome(
            predictions=torch.tensor(predictions),
            radius=torch.tensor(radii, dtype=torch.float64),
        )

    def _certify_one(
        self, model: HookedModel, image: Tensor, generator: torch.Generator, needed: int
    ) -> tuple[int, float]:
        """Class and radius of one image `(1, C, H, W)`; it abstains below `needed` hits."""
        with task(f"{self.title()} samples", total=self.n0 + self.n) as advance:
            counts = sum(self._votes(model, image, self.n0, generator, advance))
            best = int(torch.as_tensor(counts).argmax())
            hits, left = 0, self.n
            for votes in self._votes(model, image, self.n, generator, advance):
                hits, left = hits + int(votes[best]), left - int(votes.sum())
                if hits + left < needed:
                    advance(left)
                    return ABSTAINS, 0.0
        p = lower_bound(hits, self.n, self.alpha)
        return best, max(0.0, self.sigma * NormalDist().inv_cdf(p))

    def _votes(
        self,
        model: HookedModel,
        image: Tensor,
        count: int,
        generator: torch.Generator,
        advance: Callable[[int], None],
    ) -> Iterator[Tensor]:
        """Number of noisy copies that are put into each class `(K,)`, batch by batch."""
        step = images_per_forward(model, image)
        for start in range(0, count, step):
            some = min(step, count - start)
            noise = noise_like(image.expand(some, -1, -1, -1), generators=[generator] * some)
            with torch.no_grad():
                logits = model(image + self.sigma * noise)
            if bool(logits.isnan().any()):
                raise TechniqueError(
                    f"{model.id} returns NaN for an image with noise of sigma {self.sigma:g}, so "
                    "there is no certificate; choose a smaller sigma, or a model in float32"
                )
            advance(some)
            yield logits.argmax(1).bincount(minlength=logits.shape[1]).cpu()
