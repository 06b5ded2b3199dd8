"""Caches receptive fields in the store, so that cutting patches again needs no model.

Fields depend only on the architecture. Loading the model and tracing a forward pass takes longer
than the rest of a sheet of patches, and some models cannot be loaded again.
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
    """Return the cached field of a layer; None if there is none.

    A file that was changed, or that belongs to another model, is ignored.
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
    """Write an exact or spatial field to the store, unless the store cannot be written.

    The field of another model than the store's is not written.
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
    """Return the weights' hash, which identifies the architecture, and the input size."""
    record = store.manifest.model
    return [record.weights_sha256, list(record.preprocessing["input_size"])]


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()
