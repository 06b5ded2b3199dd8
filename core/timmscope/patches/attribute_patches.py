"""Units' strongest patches as an explanation sees them: which pixels drove them there.

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

from timmscope.patches.patch import Patch
from timmscope.progress import task

if TYPE_CHECKING:
    from timmscope.models import HookedModel
    from timmscope.techniques import AttributionTechnique


def attribute_patches(
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
    from timmscope.patches.cell_attributions import AT_ONCE, CellAttributions

    views = CellAttributions(model, layer, technique)
    found: list[Image.Image] = []
    with task(views.title, total=len(patches)) as advance:
        for start in range(0, len(patches), AT_ONCE):
            part = patches[start : start + AT_ONCE]
            pixels = [torch.from_numpy(np.array(patch.whole)) for patch in part]
            batch = torch.stack(pixels).permute(0, 3, 1, 2) / 255
            cells = [(unit, patch.entry.position) for patch in part]
            found += [
                Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())
                for picture in views.of(batch, cells, [patch.entry.value for patch in part])
            ]
            advance(len(part))
    views.require_some()
    return [
        replace(patch, whole=whole, image=whole.crop(patch.box))
        for patch, whole in zip(patches, found, strict=True)
    ]
