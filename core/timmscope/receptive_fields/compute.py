"""`receptive_field`: which pixels the cells of a layer see, in one of three senses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from timmscope.models import HookedModel
from timmscope.receptive_fields.dependency_boxes import FURTHEST
from timmscope.receptive_fields.energy import effective, noise
from timmscope.receptive_fields.field import (
    KINDS,
    FieldKind,
    ReceptiveField,
    from_planes,
    whole_image,
)
from timmscope.receptive_fields.trace import Trace
from timmscope_registry import ParameterError
from timmscope_registry.hooks import Layer

_found: WeakKeyDictionary[HookedModel, dict[tuple[str, FieldKind], ReceptiveField]]
_found = WeakKeyDictionary()


def receptive_field(
    model: HookedModel,
    layer: str,
    kind: FieldKind = "spatial",
    images: Tensor | None = None,
    *,
    unit: int | None = None,
    positions: Sequence[tuple[int, int]] | None = None,
) -> ReceptiveField:
    """Find the pixels that the cells of a layer see.

    ``exact``
        All pixels that can change the cell. One forward is followed operation by operation, and
        the box of pixels that each number depends on goes along: exact for any graph, for borders,
        "same" padding, dilation, branches, windows and masks alike. Weights count as if none was
        zero. After the first squeeze-excite, global norm or attention it is the whole image.
    ``spatial``
        The same, where an operation that joins *all* rows or all columns of a map at once (the
        pooling of a squeeze-excite, global response norm, group norm, attention or mixing over all
        tokens) passes on only what its inputs have in common. So gates count for nothing, and a
        token of a ViT sees its own patch. Windowed attention is local and counts.
    ``effective``
        The box with 95 % of the gradient's energy, ``|d unit / d pixel|^2`` summed over colours and
        averaged over images, with as much energy cut off at each of the four sides (Luo et al.,
        NeurIPS 2016). Measured at one cell an image; other cells get the same box, moved.

    A layer without a grid (a vector) sees the whole image in every kind. Exact and spatial fields
    are found once for a model and layer.

    Args:
        model: the model, left as it was.
        layer: name of a layer.
        kind: one of the three.
        images: of an effective field, `(B, C, H, W)` in [0, 1]; by default eight of uniform noise,
            always the same.
        unit: of an effective field; by default the energies of all units are summed, by random
            signs with a fixed seed.
        positions: of an effective field, the cell to measure at, one an image; by default the
            middle of the grid, where no border cuts the field.

    Raises:
        LayerNotFound: no such layer.
        ParameterError: no such kind, unit or cell, or images where none are used.
        UnsupportedModel: an effective field of a unit that is silent on these images.
    """
    if kind not in KINDS:
        raise ParameterError(
            f"there is no receptive field of kind {kind!r}; choose exact, spatial or effective",
            parameter="kind",
        )
    found = model.layers[layer]
    size = model.input_size[1:]
    if kind == "effective":
        used = noise(model).to(model.device) if images is None else model.check_images(images)
        if positions is not None and len(positions) != len(used):
            raise ParameterError(
                f"{len(positions)} positions for {len(used)} images: give one each",
                parameter="positions",
            )
        if found.grid is None:
            return whole_image(found.name, kind, (int(used.shape[2]), int(used.shape[3])))
        return effective(model, found, used, positions, unit)
    if images is not None or unit is not None or positions is not None:
        raise ParameterError(
            f"images, unit and positions change nothing about {kind} receptive fields; "
            "leave them out, or ask for kind='effective'",
            parameter="kind",
        )
    if found.grid is None:
        return whole_image(found.name, kind, (size[0], size[1]))
    known = _found.setdefault(model, {})
    if (found.name, kind) not in known:
        known[found.name, kind] = _follow(model, found, kind)
    return replace(known[found.name, kind])


def _follow(model: HookedModel, layer: Layer, kind: FieldKind) -> ReceptiveField:
    """Trace one forward; the random numbers of the caller stay as they were."""
    height, width = model.input_size[1:]
    if max(height, width) > FURTHEST // 4:
        raise ParameterError(
            f"the model takes images of {height}x{width} px; receptive fields are found up to "
            f"{FURTHEST // 4} px",
            parameter="model",
        )
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, *model.input_size, generator=generator).to(model.device)
    trace = Trace(spatial=kind == "spatial")
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        _attention_in_parts(),
        trace,
    ):
        trace.start(image)
        with model.record(layer.name) as recording:
            model(image)
        cells = layer.spatial(recording[layer.name])
    shadow = trace.shadows.of(cells)
    if shadow is None:
        return whole_image(layer.name, kind, (height, width))
    planes = shadow[:, 0].amax(1).cpu().numpy().astype("int64")  # (8, h, w)
    return from_planes(layer.name, kind, (height, width), planes, tuple(trace.unknown))


@contextmanager
def _attention_in_parts() -> Iterator[None]:
    """Keep `nn.MultiheadAttention` and its like from running as one operation without a rule."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
