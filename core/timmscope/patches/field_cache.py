"""Keeps receptive fields in the store, so that cutting patches again needs no model.

They depend on the architecture alone. Loading the model and following a forward takes longer than
everything else that a sheet of patches needs, and some models cannot be loaded again at all.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from timmscope.store import Store
from timmscope.store.files import write_bytes
from timmscope_registry import StoreError

if TYPE_CHECKING:
    from pathlib import Path

    from timmscope.models import HookedModel
    from timmscope.receptive_fields import FieldKind, ReceptiveField

FOLDER = "fields"


def cached_field(store: Store, layer: str, kind: FieldKind) -> ReceptiveField | None:
    """The field of a layer that the store keeps; None if there is none.

    A file that is not what was written, or of another model, counts as none.
    """
    from timmscope.receptive_fields import ReceptiveField

    with suppress(OSError, ValueError, KeyError, TypeError):
        data = json.loads(_file(store, layer, kind).read_bytes())
        if not isinstance(data, dict) or data.pop("sha256") != _digest(data):
            return None
        if data.pop("model") != _model(store):
            return None
        for name in ("boxes", "unclipped"):
            data[name] = None if data[name] is None else np.array(data[name], np.int64)
        for name in ("image_size", "grid", "size", "stride", "unknown"):
            data[name] = None if data[name] is None else tuple(data[name])
        field = ReceptiveField(**data)
        rows, columns = field.grid or (1, 1)
        if (field.layer, field.kind) == (layer, kind) and field.boxes.shape == (rows, columns, 4):
            return field
    return None


def cache_field(store: Store, field: ReceptiveField, model: HookedModel) -> None:
    """Keep an exact or spatial field in the store, unless its folder cannot be written.

    The field of a model that is not the store's is not kept.
    """
    if [model.weights_sha256, list(model.input_size)] != _model(store):
        return
    values = {each.name: getattr(field, each.name) for each in fields(field)}
    arrays = {key: v.tolist() for key, v in values.items() if isinstance(v, np.ndarray)}
    file = _file(store, field.layer, field.kind)
    with suppress(OSError, StoreError):
        file.parent.mkdir(exist_ok=True)
        data = {"model": _model(store), **values, **arrays}
        write_bytes(file, json.dumps({"sha256": _digest(data), **data}).encode())


def _file(store: Store, layer: str, kind: FieldKind) -> Path:
    name = layer.replace("%", "%25").replace("/", "%2F")
    return store.path / FOLDER / f"{name}.{kind}.json"


def _model(store: Store) -> list[Any]:
    """What a field depends on: weights belong to one architecture."""
    record = store.manifest.model
    return [record.weights_sha256, list(record.preprocessing["input_size"])]


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()
