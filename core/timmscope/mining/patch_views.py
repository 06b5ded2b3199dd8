"""A unit's strongest patches as an explanation sees them: which pixels drove it there.

Beside the patches of `top_patches`, guided backpropagation of the very unit and cell shows what of
each patch the unit answered to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from timmscope.mining.patches import Patch
from timmscope.progress import track
from timmscope_registry import TechniqueError

if TYPE_CHECKING:
    from timmscope.models import HookedModel
    from timmscope.techniques import Attribution, AttributionTechnique


def patch_views(
    patches: Sequence[Patch],
    model: HookedModel,
    layer: str,
    unit: int,
    technique: AttributionTechnique | str = "guided-backprop",
) -> list[Patch]:
    """The same patches with pictures of what made the unit answer, for `patch_figure`.

    The objective is the unit at the cell of each image's maximum. Techniques that have a value by
    colour channel are shown in colour around grey, others by their map. Where an image has no
    explanation of its own (nothing positive came back), its picture is grey.

    Args:
        patches: of `top_patches`, for the same model, layer and unit.
        model: the model.
        layer: name of the layer.
        unit: channel.
        technique: an attribution, or its text.

    Raises:
        ParameterError: the technique is no attribution.
        TechniqueError: it has no map for any of the images, or does not fit the model.
    """
    from timmscope.objectives import channel, neuron
    from timmscope.techniques.text import attribution

    explain = attribution(technique) if isinstance(technique, str) else technique
    views: list[Patch] = []
    refusals: list[TechniqueError] = []
    for patch in track(patches, explain.title(), total=len(patches)):
        pixels = torch.from_numpy(np.array(patch.whole)).permute(2, 0, 1) / 255
        gridded = model.layers[layer].grid is not None
        goal = neuron(layer, unit, *patch.entry.position) if gridded else channel(layer, unit)
        try:
            picture = _coloured(explain(model, pixels[None], goal))
        except TechniqueError as error:
            refusals.append(error)
            picture = torch.full_like(pixels, 0.5)
        whole = Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())
        views.append(replace(patch, whole=whole, image=whole.crop(patch.box)))
    if refusals and len(refusals) == len(views):
        raise refusals[0]
    return views


def _coloured(result: Attribution) -> Tensor:
    """The explanation of one image, `(3, H, W)` in [0, 1]."""
    from timmscope.figures import HeatScale, around_grey, colourise

    if result.pixels is not None:
        return around_grey(result.pixels[0])
    return colourise(result.maps[0], HeatScale.of(result.maps[0], signed=result.signed))
