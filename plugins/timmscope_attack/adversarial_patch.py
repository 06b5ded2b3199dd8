"""Adversarial patches: a small printed shape that decides what a model sees."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from timmscope import (
    Ball,
    Goal,
    HookedModel,
    ImageBatches,
    ImageName,
    ParameterError,
    image_generators,
)
from timmscope_attack.patch_masks import Form, Shape, pasted, patch_mask, patch_places
from timmscope_attack.universal_ascent import UniversalAscent

_MOMENTUM = 0.9


class AdversarialPatch(UniversalAscent):
    """An adversarial patch covers a small part of any image, and decides what the model sees.

    `g ← Σ ∇ min(loss(x ⊙ (1 − t(m)) + t(m ⊙ p)), β)` over small batches, where the mask m is a
    shape and t places it anew in each image at each step: expectation over transformation. Then
    `v ← 0.9 · v + g / mean|g|` and `p ← clip(p + α · sign(v))`: a batch has few places, so the
    momentum v averages over batches. The patch replaces pixels, which may take any colour. A `disc`
    or a `square` is turned, has 70 to 100 % of its side, and is put anywhere; `eyeglasses` stay
    near the eyes of an aligned face, and `stickers` near the middle, as on a sign. The step α falls
    linearly to a tenth. It is measured on images that it was not fitted on, at places that it has
    not met, at its full size and at 25, 50 and 75 % of the area, beside patches of uniform noise at
    the same places. With a `surrogate`, the gradient is of this model, and the patch is measured on
    the attacked one. Cost: `epochs` forward and backward passes per image.

    Paper:
        - Brown, Mané, Roy, Abadi & Gilmer, "Adversarial Patch", NIPS Workshop 2017,
          arXiv:1712.09665.
        - Athalye, Engstrom, Ilyas & Kwok, "Synthesizing Robust Adversarial Examples", ICML 2018,
          arXiv:1707.07397.
        - Sharif, Bhagavatula, Bauer & Reiter, "Accessorize to a Crime: Real and Stealthy Attacks on
          State-of-the-Art Face Recognition", CCS 2016, doi:10.1145/2976749.2978392.
        - Eykholt, Evtimov, Fernandes, Li, Rahmati, Xiao, Prakash, Kohno & Song, "Robust
          Physical-World Attacks on Deep Learning Visual Classification", CVPR 2018,
          arXiv:1707.08945.

    Inherited parameters:
        loss: loss to raise; the gradients of `margin` and `dlr` do not vanish where the softmax
            saturates.
        limit: loss above which an image no longer counts; for an objective the value to reach does
            this.
        surrogate: model whose gradient is followed; by default the attacked model itself.

    Raises:
        ImageError: there are no images, or none can be read.
        ObjectiveError: the model has no such class, or no classes, or the objective does not fit.
        ParameterError: a parameter or `batch_size` is out of range, no image is left to fit on, the
            split needs labels, an objective has no value, or the patch is smaller than a pixel.
        TechniqueError: the gradient is not finite.
        UnsupportedModel: the model whose gradient is followed has none.
    """

    norm: Literal["l0"] = "l0"
    """Norm of the change: `l0`, the number of pixels."""
    epsilon: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Largest number of pixels of the patch; by default the share `area` of the image."""
    area: float = Field(default=0.05, gt=0, le=1)
    """Largest share of the image that the patch covers."""
    shape: Shape = "disc"
    """Shape: `disc` or `square`, anywhere; `eyeglasses`, at the eyes of an aligned face;
    `stickers`, two bars near the middle."""
    mask_picture: ImageName | None = None
    """Picture with a shape of your own in white on black, cropped and resized as the images are:
    the patch stays where it is drawn. `shape`, `area` and `epsilon` then have no effect."""
    epochs: int = Field(default=30, ge=1)
    """Passes over the images."""
    batch: int = Field(default=4, ge=1)
    """Images per step."""
    step_size: float = Field(default=0.05, gt=0, allow_inf_nan=False)
    """Length of the first step in each value, in pixel units."""

    def ball(self, images: Tensor) -> Ball:
        """Return the changes of as many pixels."""
        if self.mask_picture is not None:
            return Ball(norm="l0", epsilon=float(self.mask(images).sum()))
        pixels = images.shape[-2] * images.shape[-1]
        epsilon = int(self.area * pixels) if self.epsilon is None else self.epsilon
        return Ball(norm="l0", epsilon=min(epsilon, pixels))

    @property
    def _form(self) -> Form:
        return self.shape if self.mask_picture is None else "own"

    def mask(self, images: Tensor) -> Tensor:
        """Return 1 where the patch covers an image, at its place in the middle, `(1, H, W)`."""
        height, width = images.shape[-2:]
        if self.mask_picture is not None:
            picture = self.open_image(self.mask_picture).mean(1)
            own = functional.interpolate(picture[None], (height, width), mode="area")[0]
            return (own > 0.5).to(images)
        return patch_mask(self.shape, (height, width), int(self.ball(images).epsilon)).to(images)

    def changed(
        self,
        images: Tensor,
        found: Tensor,
        generators: list[torch.Generator],
        share: float = 1.0,
    ) -> Tensor:
        """Return images with the patch at a new place each, at a share of its area."""
        mask = self.mask(images)
        places = patch_places(self._form, mask.cpu(), generators, scale=math.sqrt(share))
        return pasted(images, found, mask, places)

    def noisy(
        self,
        images: Tensor,
        found: Tensor,
        generators: list[torch.Generator],
        share: float = 1.0,
    ) -> Tensor:
        """Return images with a patch of uniform noise at the same places."""
        mask = self.mask(images)
        places = patch_places(self._form, mask.cpu(), generators, scale=math.sqrt(share))
        drawn = [torch.rand(found.shape, generator=each).to(images) for each in generators]
        every = zip(images.split(1), drawn, places.split(1), strict=True)
        return torch.cat([pasted(image, mask * noise, mask, at) for image, noise, at in every])

    def fit(self, model: HookedModel, batches: ImageBatches, goal: Goal) -> Tensor:
        """Climb the limited loss of one batch at new places after the other.

        Raises:
            ParameterError: the patch is smaller than a pixel.
        """
        like = torch.zeros(1, *batches.shape, device=model.device)
        mask = self.mask(like)
        if not bool(mask.any()):
            raise ParameterError(
                f"{self.shape} of at most {self.ball(like).epsilon:g} pixels covers none: take a "
                "larger area, or a mask_picture with white pixels",
                parameter="area" if self.mask_picture is None else "mask_picture",
            )
        # The places of fitting are of no image, because images are measured at their own places.
        (seeds,) = image_generators(1)
        drawn = int(torch.randint(2**62, (1,), generator=seeds))
        generator = torch.Generator().manual_seed(drawn)

        def changed(images: Tensor, patch: Tensor) -> Tensor:
            places = patch_places(self._form, mask.cpu(), [generator] * len(images))
            return pasted(images, patch * mask, mask, places)

        velocity = torch.zeros_like(like[0])

        def move(patch: Tensor, slope: Tensor, size: float) -> Tensor:
            velocity.mul_(_MOMENTUM).add_(slope / slope.abs().mean().clamp(min=1e-20))
            return (patch + size * velocity.sign()).clamp(0, 1)

        patch = self.ascend(
            model,
            batches,
            goal,
            torch.full_like(like[0], 0.5),
            step_size=self.step_size,
            changed=changed,
            move=move,
        )
        return patch * mask
