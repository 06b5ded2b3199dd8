"""Attributions side by side: several techniques, and several layers of each, on the same images.

Class activation maps share one forward and one backward, whatever their number and their layers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
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
)
from timmscope.techniques.lookup import attribution, told_apart
from timmscope_registry import ParameterError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Comparison(Result):
    """Maps of several techniques for the same images and objective.

    Attributes:
        maps: `(T, B, H, W)` at image size, unnormalised; scales differ between techniques.
        names: of the `T` maps, `grad-cam` or `grad-cam at layer3`.
        signed: for each, whether values below zero speak against the objective.
        images: `(B, 3, H, W)` in [0, 1].
        scores: `(B,)` value of the objective.
        objective: its text, bound.
        labels: what each image's objective is called.
    """

    maps: Tensor
    names: list[str]
    signed: list[bool]
    images: Tensor
    scores: Tensor
    objective: str
    labels: list[str]

    def __getitem__(self, name: str) -> Tensor:
        """The maps `(B, H, W)` of that name.

        Raises:
            ParameterError: there are none.
        """
        if name not in self.names:
            raise ParameterError(f"no map is called {name!r}; there are: {', '.join(self.names)}")
        return self.maps[self.names.index(name)]

    def figure(self) -> Figure:
        """A row an image, a column a technique: overlays, each with its colour bar."""
        from timmscope.evaluation.comparison_figure import comparison_figure

        return comparison_figure(self.images, self.maps, self.names, self.labels, self.signed)

    def pictures(self) -> dict[str, Any]:
        """Each overlay."""
        from timmscope.drawing import overlay

        return {
            f"{row:03d}-{re.sub(r'[^a-z0-9.+=_-]+', '-', name, flags=re.I)}": overlay(
                image, maps[row], signed=signed
            )
            for name, maps, signed in zip(self.names, self.maps, self.signed, strict=True)
            for row, image in enumerate(self.images)
        }

    def summary(self) -> list[dict[str, Any]]:
        """A map a row: image, objective, technique, and where the map peaks in pixels."""
        rows = []
        for image, label in enumerate(self.labels):
            for name, maps in zip(self.names, self.maps, strict=True):
                heat = maps[image]
                y, x = divmod(int(heat.argmax()), heat.shape[1])
                rows.append(
                    {
                        "image": image,
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
        techniques: techniques, or texts: `grad-cam`, `occlusion patch_px=56 baseline=blur`.
        model: the model to explain.
        images: `(B, 3, H, W)` in [0, 1], or anything that `model.images` takes.
        objective: an objective, its text or a class index; `top` is the model's prediction.
        layers: techniques that have a `layer` and name none are run at each of these.
        seed: of techniques that draw random numbers.
        batch_size: images a pass; by default what fits the memory budget.

    Raises:
        ParameterError: no techniques, the same one twice, or one that is no attribution.
        TechniqueError, UnsupportedModel: a technique does not fit the model or the objective.
    """
    chosen = _spread([_technique(each) for each in techniques], tuple(layers or ()))
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
    )


def _technique(given: AttributionTechnique | str) -> AttributionTechnique:
    if isinstance(given, str):
        return attribution(given)
    if not isinstance(given, AttributionTechnique):
        raise ParameterError(
            f"compare takes attribution techniques or their names, not {type(given).__name__}"
        )
    return given


def _spread(
    techniques: list[AttributionTechnique], layers: tuple[str, ...]
) -> dict[str, AttributionTechnique]:
    """Each technique by its name, those with a layer to choose once for each layer."""
    if not techniques:
        raise ParameterError("nothing to compare: name at least one technique")
    if layers and not any("layer" in type(each).model_fields for each in techniques):
        titles = ", ".join(each.title() for each in techniques)
        raise ParameterError(f"no technique has a layer to choose: {titles}", parameter="layers")
    placed: list[AttributionTechnique] = []
    for each in techniques:
        if layers and "layer" in type(each).model_fields and each.model_dump()["layer"] is None:
            settings = each.model_dump()
            placed += [type(each)(**settings | {"layer": layer}) for layer in dict.fromkeys(layers)]
        else:
            placed.append(each)
    layer_of = [getattr(each, "layer", None) for each in placed]
    names = told_apart(
        placed,
        [
            each.title() + (f" at {layer}" if layer else "")
            for each, layer in zip(placed, layer_of, strict=True)
        ],
    )
    for name in names:
        if names.count(name) > 1:
            raise ParameterError(f"{name} is given twice: compare different things")
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
