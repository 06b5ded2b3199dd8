"""Finds the image of a set that each made image is nearest to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from timmscope import ImageSet, track

_CHUNK = 64


@dataclass(frozen=True)
class NearestImages:
    """The nearest image of a set to each of some images.

    Attributes:
        distances: `(B,)` Euclidean distance over all values, in pixel units.
        psnr_db: `(B,)` the same as a peak signal-to-noise ratio in dB; infinite for a copy.
        names: name of each nearest image.
    """

    distances: Tensor
    psnr_db: Tensor
    names: list[str]


def nearest_images(images: Tensor, known: ImageSet) -> NearestImages:
    """Return the nearest image of a set to each image.

    Args:
        images: `(B, C, H, W)` in [0, 1].
        known: the set, of images of that shape.

    Raises:
        ImageError: an image of the set cannot be read.
    """
    flat = images.detach().flatten(1).float()
    distances = torch.full((len(flat),), torch.inf, device=flat.device)
    places = torch.zeros(len(flat), dtype=torch.long, device=flat.device)
    for start in track(range(0, len(known), _CHUNK), "comparing with training images"):
        numbers = range(start, min(start + _CHUNK, len(known)))
        chunk = torch.stack([known.load(number).image for number in numbers]).to(flat)
        # The faster way by a matrix product cancels where images are nearly the same.
        exact = "donot_use_mm_for_euclid_dist"
        found, row = torch.cdist(flat, chunk.flatten(1), compute_mode=exact).min(1)
        nearer = found < distances
        distances = torch.where(nearer, found, distances)
        places = torch.where(nearer, row + start, places)
    psnr = -20 * (distances / flat.shape[1] ** 0.5).log10()
    return NearestImages(distances, psnr, [known.names[place] for place in places.tolist()])
