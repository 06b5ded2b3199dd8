"""GrabCut: the object in an image, cut out along what a saliency map points at."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from timmscope import (
    AttributionTechnique,
    HookedModel,
    Objective,
    ParameterError,
    TechniqueError,
    image_generators,
    technique,
)


class GrabCut(AttributionTechnique):
    """Segmentation from saliency (Simonyan et al., 2014, §3.2): graph cut between colour models.

    The colours of pixels from the map's 95th percentile up make a model of the object, those up to
    the 30th a model of the background. A graph cut finds the border between them, and the
    largest connected part is the object. More iterations fit models and cut to each other, as in
    GrabCut (Rother et al., 2004).
    The map is a mask: 1 on the object, 0 elsewhere. Any attribution's map will do.
    """

    saliency: str = "saliency"
    """The attribution whose map to start from, as in `grad-cam`; with its default parameters."""
    foreground: float = Field(default=0.95, gt=0, lt=1)
    """Quantile of the map from which on pixels give the object's colours."""
    background: float = Field(default=0.30, gt=0, lt=1)
    """Quantile up to which they give the background's."""
    iterations: int = Field(default=1, ge=1)
    """Cuts; after the first, the one of the paper, models and cut are fitted to each other."""
    largest: bool = True
    """Keep the largest connected part alone, as the paper does."""

    @model_validator(mode="after")
    def _ordered(self) -> GrabCut:
        if self.background >= self.foreground:
            raise ValueError(
                f"background is {self.background} and foreground {self.foreground}: the quantile "
                "of the background must be the lower one"
            )
        return self

    def attribute(self, model: HookedModel, images: Tensor, objective: Objective) -> Tensor:
        """Masks `(B, H, W)`, 0 or 1.

        Raises:
            ParameterError: `saliency` names no other attribution.
            TechniqueError: a map does not tell object from background.
        """
        outcome = self._source().attribute(model, images, objective)
        maps = outcome[0] if isinstance(outcome, tuple) else outcome
        size = (images.shape[2], images.shape[3])
        if tuple(maps.shape[1:]) != size:
            maps = functional.interpolate(maps[:, None].float(), size, mode="bilinear")[:, 0]
        return self.segment(images, maps)

    def segment(self, images: Tensor, maps: Tensor) -> Tensor:
        """Masks from maps of any origin.

        Args:
            images: `(B, 3, H, W)` in [0, 1].
            maps: `(B, H, W)`, higher on the object.

        Returns:
            `(B, H, W)`, 1 on the object and 0 elsewhere.

        Raises:
            TechniqueError: a map does not tell object from background.
        """
        masks = [
            self._cut(image, heat, int(generator.initial_seed()) % 2**31)
            for image, heat, generator in zip(
                images, maps, image_generators(len(images)), strict=True
            )
        ]
        return torch.stack(masks).to(images.device)

    def why_zero(self) -> str:
        """The cut left nothing."""
        return (
            "the colours of its most salient pixels are the background's too, so the cut left "
            "nothing; use another saliency, a lower foreground or a lower background"
        )

    def _source(self) -> AttributionTechnique:
        kind = technique(self.saliency)
        if not issubclass(kind, AttributionTechnique) or issubclass(kind, GrabCut):
            raise ParameterError(
                f"saliency is {self.saliency!r}: name an attribution, as in 'saliency' or "
                "'grad-cam'",
                parameter="saliency",
            )
        return kind()

    def _cut(self, image: Tensor, heat: Tensor, seed: int) -> Tensor:
        import cv2

        values = heat.detach().double().cpu().numpy()
        high, low = np.quantile(values, [self.foreground, self.background])
        sure, never = values >= high, values <= low
        if high <= low:
            raise TechniqueError(
                f"the quantiles {self.background:g} and {self.foreground:g} of the map are the "
                "same: so much of it is of one value that object and background cannot be told "
                "apart; use another saliency, or a higher foreground"
            )
        pixels = (image.detach().float() * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        mask = np.where(sure, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        cv2.setRNGSeed(seed)
        behind, before = _colour_models(cv2, pixels, sure, never)
        for step in range(self.iterations):
            # First with the models of the seeds alone, as the paper has it; then refined.
            mode = cv2.GC_EVAL if step else cv2.GC_EVAL_FREEZE_MODEL
            cv2.grabCut(np.ascontiguousarray(pixels), mask, None, behind, before, 1, mode)
        found = (mask == cv2.GC_PR_FGD).astype(np.uint8)
        if self.largest and found.any():
            _, parts, facts, _ = cv2.connectedComponentsWithStats(found, connectivity=4)
            found = parts == 1 + facts[1:, cv2.CC_STAT_AREA].argmax()
        return torch.from_numpy(found.astype(np.float32))


def _colour_models(
    cv2: Any, pixels: NDArray[np.uint8], sure: NDArray[np.bool_], never: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mixtures of Gaussians of the colours behind and of the object, from the sure pixels alone.

    OpenCV fits them on whole images, so these pixels are laid out as one.
    """
    strip = np.concatenate([pixels[never], pixels[sure]])[None]
    mask = np.full(strip.shape[:2], cv2.GC_BGD, np.uint8)
    mask[0, int(never.sum()) :] = cv2.GC_FGD
    behind, before = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(np.ascontiguousarray(strip), mask, None, behind, before, 0, cv2.GC_INIT_WITH_MASK)
    return behind, before
