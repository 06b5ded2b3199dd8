"""`compare` attributes the same images by several techniques, each at several layers if wanted.

All class activation maps share one forward and one backward pass, at any number of layers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from timmscope.models import HookedModel
from timmscope.objectives import Objective
from timmscope.results.result import Provenance, Result
from timmscope.techniques.attribution import (
    Attribution,
    AttributionTechnique,
    attribute_together,
    image_captions,
)
from timmscope.techniques.lookup import attribution, unique_names
from timmscope_registry import ParameterError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Comparison(Result):
    """Maps of several techniques for the same images and objective.

    Attributes:
        maps: `(T, B, H, W)` at image size, not normalised; scales differ between techniques.
        names: names of the `T` techniques, as `grad-cam` or `grad-cam at layer3`.
        signed: for each of them, whether negative values are evidence against the objective.
        images: `(B, 3, H, W)` in [0, 1].
        scores: `(B,)` value of the objective.
        objective: the text of the bound objective.
        labels: the name of the objective for each image.
        files: short names of the image files; empty for images that are no files.
        probabilities: `(B,)` softmax probability of each image's class if the objective is `top`;
            else None.
    """

    maps: Tensor
    names: list[str]
    signed: list[bool]
    images: Tensor
    scores: Tensor
    objective: str
    labels: list[str]
    files: list[str] = field(default_factory=list)
    probabilities: Tensor | None = None

    def __getitem__(self, name: str) -> Tensor:
        """Return the maps `(B, H, W)` of the technique with that name.

        Raises:
            ParameterError: there is no such name.
        """
        if name not in self.names:
            raise ParameterError(f"no map is called {name!r}; the maps are {', '.join(self.names)}")
        return self.maps[self.names.index(name)]

    def figure(self) -> Figure:
        """Draw overlays with colour bars, with one row per image and one column per technique."""
        from timmscope.evaluation.comparison_figure import comparison_figure

        captions = image_captions(self.labels, self.scores, self.files, self.probabilities)
        return comparison_figure(self.images, self.maps, self.names, captions, self.signed)

    def pictures(self) -> dict[str, Any]:
        """Return every overlay, by file name."""
        from timmscope.drawing import overlay

        return {
            f"{row:03d}-{re.sub(r'[^a-z0-9.+=_-]+', '-', name, flags=re.I)}": overlay(
                image, maps[row], signed=signed
            )
            for name, maps, signed in zip(self.names, self.maps, self.signed, strict=True)
            for row, image in enumerate(self.images)
        }

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per map: image, objective, technique, and the map's peak in pixels."""
        rows = []
        for image, label in enumerate(self.labels):
            for name, maps in zip(self.names, self.maps, strict=True):
                heat = maps[image]
                y, x = divmod(int(heat.argmax()), heat.shape[1])
                rows.append(
                    {
                        "image": image,
                        **({"file": self.files[image]} if self.files else {}),
                        "objective": label,
                        "technique": name,
                        "peak_yx_px": [y, x],
                        "max": float(heat.max()),
                        "min": float(heat.min()),
                    }
                )
        return rows


def compare(
    techniques: Sequence[AttributionTechnique | str],
    model: HookedModel,
    images: Any,
    objective: Objective | str | int = "top",
    *,
    layers: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Comparison:
    """Attribute an objective by several techniques, side by side.

    Args:
        techniques: techniques, or texts as `grad-cam`, `occlusion patch_px=56 baseline=blur`.
        model: the model to explain.
        images: `(B, 3, H, W)` in [0, 1], or anything that `model.images` takes.
        objective: an objective, its text or a class index; `top` is the model's prediction.
        layers: layers at each of which techniques run that have a `layer` but name none.
        seed: seed of techniques that draw random numbers.
        batch_size: images per pass; by default as many as fit the memory budget.

    Raises:
        ParameterError: no technique is given, one is given twice, or one is not an attribution.
        TechniqueError, UnsupportedModel: a technique does not fit the model or the objective.
    """
    chosen = _at_layers([_technique(each) for each in techniques], tuple(layers or ()))
    results = attribute_together(list(chosen.values()), model, images, objective, seed, batch_size)
    first = results[0]
    return Comparison(
        provenance=_provenance(results, model, seed),
        maps=torch.stack([result.maps for result in results]),
        names=list(chosen),
        signed=[result.signed for result in results],
        images=first.images,
        scores=first.scores,
        objective=first.objective,
        labels=first.labels,
        files=first.names,
        probabilities=first.probabilities,
    )


def _technique(given: AttributionTechnique | str) -> AttributionTechnique:
    if isinstance(given, str):
        return attribution(given)
    if not isinstance(given, AttributionTechnique):
        raise ParameterError(
            f"compare takes attribution techniques or their names, not {type(given).__name__}"
        )
    return given


def _at_layers(
    techniques: list[AttributionTechnique], layers: tuple[str, ...]
) -> dict[str, AttributionTechnique]:
    """Return the techniques by name; those with a layer to choose once for each of `layers`."""
    if not techniques:
        raise ParameterError("nothing to compare: name at least one technique")
    if layers and not any("layer" in type(each).model_fields for each in techniques):
        titles = ", ".join(each.title() for each in techniques)
        raise ParameterError(f"no technique has a layer to choose: {titles}", parameter="layers")
    placed: list[AttributionTechnique] = []
    for each in techniques:
        settings = dict(each)
        if layers and settings.get("layer", "") is None:
            placed += [type(each)(**settings | {"layer": layer}) for layer in dict.fromkeys(layers)]
        else:
            placed.append(each)
    layer_of = [getattr(each, "layer", None) for each in placed]
    names = unique_names(
        placed,
        [
            each.title() + (f" at {layer}" if layer else "")
            for each, layer in zip(placed, layer_of, strict=True)
        ],
    )
    for name in names:
        if names.count(name) > 1:
            raise ParameterError(f"{name} is given twice: compare different techniques")
    return dict(zip(names, placed, strict=True))


def _provenance(results: list[Attribution], model: HookedModel, seed: int) -> Provenance:
    return Provenance.now(
        technique="timmscope:compare",
        family="attribution",
        parameters={
            "techniques": [
                {
                    "technique": each.provenance.technique,
                    "parameters": each.provenance.parameters,
                }
                for each in results
            ]
        },
        model=model.id,
        weights_sha256=model.weights_sha256,
        seed=seed,
        call={"objective": results[0].objective},
    )
