"""GrabCut: the object in an image, segmented from a saliency map."""

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
    """GrabCut segments the object that a saliency map points at, with a graph cut.

    Pixels with `map ≥ q_0.95` give the colours of the object, pixels with `map ≤ q_0.30` those of
    the background, where `q_p` is a quantile of the map; each is modelled by a mixture of
    Gaussians. A graph cut finds the border between them, and the largest connected part is the
    object. With more iterations models and cut are fitted to each other, as in the GrabCut paper.
    The map is a mask: 1 on the object, 0 elsewhere. Any attribution can give the saliency map.

    Paper:
        - Simonyan, Vedaldi & Zisserman, "Deep Inside Convolutional Networks: Visualising Image
          Classification Models and Saliency Maps", ICLR workshop 2014, arXiv:1312.6034, section
          3.2.
        - Rother, Kolmogorov & Blake, "GrabCut: Interactive Foreground Extraction using Iterated
          Graph Cuts", ACM Transactions on Graphics 2004.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: the objective does not fit the model.
        ParameterError: `saliency` names no other attribution, or a parameter or `batch_size` is out
            of range.
        PluginError: OpenCV is not installed.
        TechniqueError: the map does not separate object and background, or the cut leaves no
            object.
    """

    saliency: str = "saliency"
    """Attribution that gives the map, as in `grad-cam`; with its default parameters."""
    foreground: float = Field(default=0.95, gt=0, lt=1)
    """Quantile of the map; pixels at or above it give the object's colours."""
    background: float = Field(default=0.30, gt=0, lt=1)
    """Quantile of the map; pixels at or below it give the background's colours."""
    iterations: int = Field(default=1, ge=1)
    """Number of cuts: 1 as in the paper; in each further one, models and cut are fitted to each
    other."""
    largest: bool = True
    """Keep only the largest connected part, as in the paper."""

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
            TechniqueError: a map does not separate object and background.
        """
        outcome = self._source().attribute(model, images, objective)
        maps = outcome[0] if isinstance(outcome, tuple) else outcome
        size = (images.shape[2], images.shape[3])
        if tuple(maps.shape[1:]) != size:
            maps = functional.interpolate(maps[:, None].float(), size, mode="bilinear")[:, 0]
        return self.segment(images, maps)

    def segment(self, images: Tensor, maps: Tensor) -> Tensor:
        """Masks from given maps.

        Args:
            images: `(B, 3, H, W)` in [0, 1].
            maps: `(B, H, W)`, higher on the object.

        Returns:
            `(B, H, W)`, 1 on the object and 0 elsewhere.

        Raises:
            TechniqueError: a map does not separate object and background.
        """
        masks = [
            self._cut(image, heat, int(generator.initial_seed()) % 2**31)
            for image, heat, generator in zip(
                images, maps, image_generators(len(images)), strict=True
            )
        ]
        return torch.stack(masks).to(images.device)

    def why_zero(self) -> str:
        """The cut left no pixel of the object."""
        return (
            "the colours of the most salient pixels are the background's too, so the cut left no "
            "object; use another saliency, a lower foreground or a lower background"
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

        from timmscope.drawing import to_array

        values = heat.detach().double().cpu().numpy()
        high, low = np.quantile(values, [self.foreground, self.background])
        object_seed, background_seed = values >= high, values <= low
        if high <= low:
            raise TechniqueError(
                f"the quantiles {self.background:g} and {self.foreground:g} of the map are equal: "
                "too many of its values are the same to separate object and background; use "
                "another saliency, or a higher foreground"
            )
        pixels = to_array(image)
        mask = np.where(object_seed, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        cv2.setRNGSeed(seed)
        background, foreground = _colour_models(cv2, pixels, object_seed, background_seed)
        for step in range(self.iterations):
            # The first cut uses the seeds' models, as in the paper; others refit them.
            mode = cv2.GC_EVAL if step else cv2.GC_EVAL_FREEZE_MODEL
            cv2.grabCut(np.ascontiguousarray(pixels), mask, None, background, foreground, 1, mode)
        found = (mask == cv2.GC_PR_FGD).astype(np.uint8)
        if self.largest and found.any():
            _, parts, facts, _ = cv2.connectedComponentsWithStats(found, connectivity=4)
            found = parts == 1 + facts[1:, cv2.CC_STAT_AREA].argmax()
        return torch.from_numpy(found.astype(np.float32))


def _colour_models(
    cv2: Any,
    pixels: NDArray[np.uint8],
    object_seed: NDArray[np.bool_],
    background_seed: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mixtures of Gaussians of the background's and the object's colours, from the seeds only.

    OpenCV fits them on whole images, so the pixels are laid out as one.
    """
    strip = np.concatenate([pixels[background_seed], pixels[object_seed]])[None]
    mask = np.full(strip.shape[:2], cv2.GC_BGD, np.uint8)
    mask[0, int(background_seed.sum()) :] = cv2.GC_FGD
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    whole = np.ascontiguousarray(strip)
    cv2.grabCut(whole, mask, None, background, foreground, 0, cv2.GC_INIT_WITH_MASK)
    return background, foreground
