"""Activation maps: where a layer's units respond in an image, before and after the activation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    HookedModel,
    LayerName,
    ModelTechnique,
    ParameterError,
    Result,
    Sheet,
    TechniqueError,
    UnitNumbers,
    chosen_units,
    receptive_field,
)
from timmscope.drawing import short_names
from timmscope_registry.hooks import ActivationCall, Layer
from timmscope_representation.units.map_pictures import (
    Centres,
    coloured,
    enlarged,
    laid_over,
    min_max,
    placed,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Colours = Literal["heat", "grey"]
_PER_ROW = 6
"""Number of pictures per row of the figure."""


@dataclass(frozen=True, kw_only=True)
class UnitMaps(Result):
    """Maps of some units of a layer for some images.

    Attributes:
        images: `(B, 3, H, W)` in [0, 1].
        image_names: name of each image.
        units: `(B, n)` units shown for each image, in order.
        energies: `(B, C)` L2 norm of the map of every unit.
        maps: `(B, n, h, w)` output of the layer.
        levels: `(B, n, h, w)` uint8, the maps scaled from 0 at the lowest to 255 at the highest
            value of each map, or of all maps of an image.
        before: `(B, n, h, w)` input of the activation; None if the layer has none.
        after: `(B, n, h, w)` output of the activation; one of the two is `maps`.
        below_zero: `(B, n)` share of the cells that are below zero before the activation.
        energy_lost: `(B, n)` share of the sum of squares that the activation removes.
        layer: name of the layer.
        activation: hook point and kind of the activation, as in `act1 (ReLU)`; None without one.
        centres: row and column in pixels of the centre of the first cell, and the steps to the next
            cells; None where cells have no fixed positions, and maps are stretched.
        colours: colours of the pictures.
        scale: range of the colours.
    """

    images: Tensor
    image_names: list[str]
    units: Tensor
    energies: Tensor
    maps: Tensor
    levels: Tensor
    before: Tensor | None
    after: Tensor | None
    below_zero: Tensor | None
    energy_lost: Tensor | None
    layer: str
    activation: str | None
    centres: list[float] | None
    colours: str
    scale: str

    def figure(self) -> Figure:
        """The maps of the first image, before and after the activation and over the image."""
        return self._page(0)

    def pictures(self) -> dict[str, Any]:
        """One page for each of the other images."""
        return {
            f"image-{number + 1:03d}": lambda number=number: self._page(number)
            for number in range(1, len(self.images))
        }

    def summary(self) -> list[dict[str, Any]]:
        """One row per map."""
        rows = []
        for image, name in enumerate(self.image_names):
            for index, unit in enumerate(self.units[image].tolist()):
                values = self.maps[image, index]
                row = {
                    "image": name,
                    "unit": unit,
                    "energy": float(self.energies[image, unit]),
                    "min": float(values.min()),
                    "max": float(values.max()),
                }
                if self.below_zero is not None and self.energy_lost is not None:
                    row["below_zero"] = float(self.below_zero[image, index])
                    row["energy_lost"] = float(self.energy_lost[image, index])
                rows.append(row)
        return rows

    def _page(self, image: int) -> Figure:
        picture, shown = self.images[image], self.maps[image]
        size = (picture.shape[1], picture.shape[2])
        sides = [shown] if self.before is None or self.after is None else [
            self.before[image], self.after[image]
        ]  # fmt: skip
        spans, own = self._spans(torch.cat(sides, 1)), self._spans(shown)
        pictures, titles = [picture], [self.image_names[image]]
        for index, unit in enumerate(self.units[image].tolist()):
            for side in sides:
                drawn = coloured(side[index], spans[index], self.colours)
                pictures.append(enlarged(drawn, size))
            over = placed(shown[index], size, self.centres)
            pictures.append(laid_over(picture, over, own[index], self.colours))
            titles += self._titles(image, index, unit)
        total = len(self.units[image])
        each = len(sides) + 1
        row = _PER_ROW // each * each
        count = total * each
        sheet = Sheet(
            provenance=self.provenance,
            images=torch.stack(pictures),
            titles=titles,
            rows=[],
            row_lengths=[1, *(min(row, count - start) for start in range(0, count, row))],
            title=f"{self.layer} of {self.provenance.model}: {total} of "
            f"{self.energies.shape[1]} units",
            note=self._note(shown.shape[1:]),
        )
        return sheet.figure()

    def _spans(self, maps: Tensor) -> list[tuple[float, float]]:
        """Range of the colours of each map `(n, h, w)`."""
        low, high = maps.amin((1, 2)), maps.amax((1, 2))
        if self.scale == "common":
            low, high = low.min().expand_as(low), high.max().expand_as(high)
        return list(zip(low.tolist(), high.tolist(), strict=True))

    def _titles(self, image: int, index: int, unit: int) -> list[str]:
        """Captions of a unit's map, or of both sides of the activation, and of the overlay."""
        energy = f"{unit} on the image\nenergy {float(self.energies[image, unit]):.3g}"
        if self.below_zero is None or self.energy_lost is None:
            return [f"unit {unit}", energy]
        below, lost = self.below_zero[image, index], self.energy_lost[image, index]
        return [
            f"{unit} before\n{100 * float(below):.0f} % below 0",
            f"{unit} after\n{100 * float(lost):.0f} % of energy lost",
            energy,
        ]

    def _note(self, grid: torch.Size) -> str:
        scale = "of all maps" if self.scale == "common" else "of each unit"
        if self.colours == "grey":
            parts = [f"black is the lowest value, white the highest {scale}"]
        else:
            parts = [
                "black is 0, or the lowest value if all are above 0; blue is below 0; "
                f"one range {scale}"
            ]
        if self.activation is not None:
            parts.append(f"before and after {self.activation}, in one range")
        parts.append(
            f"{grid[0]}×{grid[1]} cells, on the image at their receptive fields' centres"
            if self.centres is not None
            else f"{grid[0]}×{grid[1]} cells, stretched over the image"
        )
        return "; ".join(parts)


class ActivationMaps(ModelTechnique):
    """Shows a layer's channels for images, before and after the activation.

    `A_kij`, the output of unit k at cell (i, j), raw in the arrays and in colours between the
    lowest and the highest value of the map (or of all maps). Over the image, every value is placed
    at the centre of its cell's receptive field, with linear interpolation between; cells whose
    receptive fields are not one box moved by a step are stretched over the image. If the layer ends
    with an activation (a ReLU, GELU, SiLU …), or its output goes into one, both sides are shown in
    one range of values: a ReLU discards what is below zero.

    The energy of a unit is the L2 norm of its map in the layer's output, `√(Σ_ij A_kij²)`, and the
    energy lost is `1 − Σ after² / Σ before²`.

    Raises:
        ImageError: an image cannot be read.
        LayerNotFound: there is no such layer.
        ParameterError: a parameter is out of range, there is no image, or the layer has no grid.
        TechniqueError: a map is not finite.
    """

    layer: LayerName
    """Layer whose units to show; it must have a grid."""
    units: UnitNumbers | None = None
    """Units to choose from, as in `17` or `3,5,8-15`; by default all."""
    count: int = Field(default=12, ge=1, le=80)
    """Number of units to show."""
    order: Literal["energy", "unit"] = "energy"
    """Order of the units: highest energy first, for each image separately, or by number."""
    scale: Literal["per-map", "common"] = "per-map"
    """Range of the colours: of each map, or of all maps shown of an image."""
    colours: Colours = "heat"
    """Heat colours with blue below zero, or grey."""

    def analyse(self, model: HookedModel, images: Any) -> UnitMaps:
        """Maps of a model's layer for images.

        Raises:
            LayerNotFound: there is no such layer.
            ParameterError: there is no image, or the layer has no grid.
            TechniqueError: a map is not finite.
        """
        if images is None:
            raise ParameterError(f"{self.title()} needs images", parameter="images")
        _require_grid(model, model.layers[self.layer])
        batch = model.images(images).detach()
        sized = model.for_images(batch)
        layer = sized.layers[self.layer]
        units = torch.tensor(chosen_units(self.units, layer.name, layer.channels))
        activation, ends = _activation_of(model, layer.name)
        kept: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []
        for row in self.track(range(len(batch)), total=len(batch)):
            own, other = _both_sides(sized, layer, batch[row : row + 1], activation, ends)
            if not bool(torch.isfinite(own[units]).all()):
                bad = int((~torch.isfinite(own[units])).flatten(1).any(1).nonzero()[0])
                raise TechniqueError(
                    f"unit {int(units[bad])} of {layer.name} is NaN or infinite on image {row}"
                )
            energies = own.double().square().sum((1, 2)).sqrt()
            shown = units
            if self.order == "energy":
                shown = units[torch.argsort(energies[units], descending=True, stable=True)]
            shown = shown[: self.count]
            kept.append(
                (shown, energies.float(), own[shown], None if other is None else other[shown])
            )
        maps = torch.stack([found for _, _, found, _ in kept])
        others = [other for *_, other in kept if other is not None]
        pair: tuple[Tensor | None, Tensor | None] = (None, None)
        if others:
            sides = (torch.stack(others), maps)
            pair = sides if ends else sides[::-1]
        below, lost = _discarded(*pair)
        centres = self._centres(model, layer, (batch.shape[2], batch.shape[3]))
        return UnitMaps(
            provenance=self.provenance(model, images=_names(images, len(batch))),
            images=_drawable(batch),
            image_names=_names(images, len(batch)),
            units=torch.stack([shown for shown, *_ in kept]),
            energies=torch.stack([energies for _, energies, *_ in kept]),
            maps=maps,
            levels=(min_max(maps, common=self.scale == "common") * 255).round().byte(),
            before=pair[0],
            after=pair[1],
            below_zero=below,
            energy_lost=lost,
            layer=layer.name,
            activation=f"{activation.point} ({activation.kind})" if activation else None,
            centres=list(centres) if centres is not None else None,
            colours=self.colours,
            scale=self.scale,
        )

    def _centres(self, model: HookedModel, layer: Layer, size: tuple[int, int]) -> Centres | None:
        """Centres of the cells; None if their receptive fields are not one box moved by a step."""
        if size != tuple(model.input_size[1:]):
            return None
        field = receptive_field(model, layer.name)
        if field.unclipped is None or field.stride is None:
            return None
        left, upper, right, lower = (float(edge) for edge in field.unclipped[0, 0])
        return ((upper + lower) / 2, (left + right) / 2, *field.stride)


def _require_grid(model: HookedModel, layer: Layer) -> None:
    if layer.grid is not None and layer.grid != (1, 1):
        return
    later = [each for each in model.layers.values() if each.grid not in (None, (1, 1))]
    near = min(later, key=lambda each: abs(each.order - layer.order), default=None)
    hint = f"; nearest layer with a grid: {near.name}" if near is not None else ""
    raise ParameterError(
        f"the units of {layer.name} have one value per image, not a map{hint}", parameter="layer"
    )


def _activation_of(model: HookedModel, layer: str) -> tuple[ActivationCall | None, bool]:
    """The activation that a layer ends with (True), or else that reads its output (False)."""
    calls = model.hooks.activations()
    for call in calls:
        if layer in call.after:
            return call, True
    for call in calls:
        if layer in call.before:
            return call, False
    return None, False


def _both_sides(
    model: HookedModel, layer: Layer, image: Tensor, call: ActivationCall | None, ends: bool
) -> tuple[Tensor, Tensor | None]:
    """A layer's maps `(C, h, w)` for one image, and those on the other side of its activation."""
    inputs: dict[str, Tensor] = {}

    def keep(given: Tensor) -> None:
        inputs["activation"] = given.detach().clone()

    watched = {call.point: keep} if call is not None and ends else {}
    further = [call.point] if call is not None and not ends else []
    with torch.no_grad(), model.hooks.watch_inputs(watched), model.record(
        layer.name, *further
    ) as recording:  # fmt: skip
        model(image)
        own = recording[layer.name]
        other = inputs["activation"] if watched else recording[further[0]] if further else None

    def maps(value: Tensor) -> Tensor:
        return layer.spatial(value)[0].float().cpu()

    return maps(own), None if other is None or other.shape != own.shape else maps(other)


def _discarded(before: Tensor | None, after: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Share of cells below zero before an activation, and share of the energy it removes."""
    if before is None or after is None:
        return None, None
    whole = before.double().square().sum((2, 3))
    left = after.double().square().sum((2, 3))
    lost = torch.where(whole > 0, 1 - left / whole.clamp_min(1e-300), torch.zeros_like(whole))
    return (before < 0).float().mean((2, 3)), lost.float()


def _drawable(images: Tensor) -> Tensor:
    """RGB images `(B, 3, H, W)` to draw: grey if the images are not RGB."""
    pictures = images.cpu().float()
    if pictures.shape[1] != 3:
        pictures = pictures.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return pictures


def _names(images: Any, count: int) -> list[str]:
    items = list(images) if isinstance(images, list | tuple) else [images]
    if len(items) != count or not all(isinstance(item, str | Path) for item in items):
        return [f"image {row}" for row in range(count)]
    return short_names([str(item) for item in items])
