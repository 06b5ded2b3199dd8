"""`receptive_field` finds which pixels the cells of a layer see, in one of three senses."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from timmscope.models import HookedModel
from timmscope.receptive_fields.dependency_boxes import MAX_COORDINATE
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
from timmscope_registry.hooks import Layer, OwnGenerators

_cache: WeakKeyDictionary[HookedModel, dict[tuple[str, FieldKind], ReceptiveField]]
_cache = WeakKeyDictionary()


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
        each number carries the box of pixels that it depends on. This is exact for any graph, with
        borders, "same" padding, dilation, branches, windows and masks. All weights are treated as
        if they were not zero. After the first squeeze-excite, global norm or attention the field is
        the whole image.
    ``spatial``
        The same, except that an operation that combines *all* rows or all columns of a map (the
        pooling of a squeeze-excite, global response norm, group norm, attention or mixing over all
        tokens) passes on only the pixels that all its inputs have in common. So gates add nothing,
        and a token of a ViT sees its own patch. Windowed attention is local, so it counts.
    ``effective``
        The box with 95 % of the gradient's energy, ``|d unit / d pixel|^2`` summed over colours and
        averaged over images, with the same energy cut off at each of the four sides (Luo et al.,
        NeurIPS 2016). It is measured at one cell per image; other cells get the same box, shifted.

    A layer without a grid (a vector) sees the whole image in every kind. Exact and spatial fields
    are computed once for a model and layer.

    Args:
        model: the model; it is not changed.
        layer: name of a layer.
        kind: ``exact``, ``spatial`` or ``effective``.
        images: `(B, C, H, W)` in [0, 1], only for an effective field; by default eight images of
            uniform noise, always the same.
        unit: the unit of an effective field; by default the energies of all units are summed, by
            random signs with a fixed seed.
        positions: row and column of the cell at which an effective field is measured, one per
            image; by default the middle of the grid, where no border cuts the field.

    Raises:
        LayerNotFound: there is no such layer.
        ParameterError: there is no such kind, unit or cell; images, unit or positions are given for
            another kind than effective; or the model's images are too large.
        ImageError: the images have a wrong shape or values outside [0, 1].
        UnsupportedModel: the unit of an effective field is silent on these images.
    """
    if kind not in KINDS:
        raise ParameterError(
            f"there is no receptive field of kind {kind!r}; choose exact, spatial or effective",
            parameter="kind",
        )
    resolved = model.layers[layer]
    size = model.input_size[1:]
    if kind == "effective":
        images = noise(model).to(model.device) if images is None else model.check_images(images)
        if positions is not None and len(positions) != len(images):
            raise ParameterError(
                f"{len(positions)} positions for {len(images)} images: give one each",
                parameter="positions",
            )
        if resolved.grid is None:
            return whole_image(resolved.name, kind, (int(images.shape[2]), int(images.shape[3])))
        return effective(model.defended(()), resolved, images, positions, unit)
    if images is not None or unit is not None or positions is not None:
        raise ParameterError(
            f"images, unit and positions change nothing about {kind} receptive fields; "
            "leave them out, or ask for kind='effective'",
            parameter="kind",
        )
    if resolved.grid is None:
        return whole_image(resolved.name, kind, (size[0], size[1]))
    fields = _cache.setdefault(model, {})
    if (resolved.name, kind) not in fields:
        fields[resolved.name, kind] = _follow(model.defended(()), resolved, kind)
    return replace(fields[resolved.name, kind])


def _follow(model: HookedModel, layer: Layer, kind: FieldKind) -> ReceptiveField:
    """Follow one forward of the model; the caller's random state does not change."""
    height, width = model.input_size[1:]
    if max(height, width) > MAX_COORDINATE // 4:
        raise ParameterError(
            f"the model takes images of {height}x{width} px; receptive fields can be found up to "
            f"{MAX_COORDINATE // 4} px",
            parameter="model",
        )
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, *model.input_size, generator=generator).to(model.device)
    trace = Trace(spatial=kind == "spatial")
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        OwnGenerators(seed=0),
        _no_attention_fastpath(),
        trace,
    ):
        trace.start(image)
        with model.record(layer.name) as recording:
            model(image)
        cells = layer.spatial(recording[layer.name])
    boxes = trace.dependencies.of(cells)
    if boxes is None:
        return whole_image(layer.name, kind, (height, width))
    planes = boxes[:, 0].amax(1).cpu().numpy().astype("int64")  # (8, h, w)
    return from_planes(layer.name, kind, (height, width), planes, tuple(trace.unknown))


@contextmanager
def _no_attention_fastpath() -> Iterator[None]:
    """Turn off PyTorch's fast path of `nn.MultiheadAttention`, an operation without a rule.

    The setting is the process's: with a lock, no other thread restores what this one has changed.
    """
    with _fastpath_lock:
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(before)


_fastpath_lock = threading.RLock()
