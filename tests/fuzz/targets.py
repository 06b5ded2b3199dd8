"""Readers of a stranger's input, as functions of bytes that may raise only `TimmscopeError`."""

from __future__ import annotations

import io
import json
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from timmscope import Store, TimmscopeError, checked_json, load_result, mine, technique
from timmscope.images.decode import open_image
from timmscope.objectives import parse_objective
from timmscope.testing import tiny_model


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz"))


@cache
def store() -> Path:
    """Make a small store."""
    model, folder = tiny_model(), _folder()
    shape = (10, *model.input_size[1:], 3)
    np.save(folder / "a.npy", np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    settings: dict[str, Any] = {"layers": ["act2"], "shard_size": 4, "batch_size": 2, "workers": 0}
    return mine(model, folder / "a.npy", folder / "s.scope", **settings).path


@cache
def result() -> Path:
    """Save a small result."""
    import torch

    model = tiny_model()
    images = torch.rand(1, 3, *model.input_size[1:], generator=torch.Generator().manual_seed(0))
    made = technique("saliency")()(model, images)  # type: ignore[operator]
    saved: Path = made.save(_folder() / "result")
    return saved


def _signed(data: bytes) -> bytes:
    """Give a JSON object the digest that fits, so that more than the digest is read."""
    try:
        values = json.loads(data)
        values.pop(checked_json.DIGEST, None)
        return checked_json.dump(values)
    except (ValueError, AttributeError, RecursionError, TypeError):
        return data


def manifest(data: bytes) -> None:
    """Open a store with this manifest, and read its rows and names."""
    path = store() / "manifest.json"
    whole = path.read_bytes()
    try:
        path.write_bytes(_signed(data))
        opened = Store.open(store())
        _ = opened.images.paths[:3]
        for name in opened.layers:
            _ = opened.layer(name).pooled[:3], opened.layer(name).statistics()
    finally:
        path.write_bytes(whole)


def saved_result(data: bytes) -> None:
    """Load a result with this record."""
    path = result() / "result.json"
    whole = path.read_bytes()
    try:
        path.write_bytes(_signed(data))
        load_result(result())
    finally:
        path.write_bytes(whole)


def condition(data: bytes) -> None:
    """Choose images by this condition."""
    _opened().images.where(data.decode("utf-8", "replace"))


@cache
def _opened() -> Store:
    return Store.open(store())


def objective(data: bytes) -> None:
    """Parse an objective, and parse its text again."""
    text = data.decode("utf-8", "replace")
    parsed = parse_objective(text)
    assert parse_objective(str(parsed)) == parsed, text
    parsed.bind(_model(), None)


@cache
def _model() -> Any:
    return tiny_model()


def image(data: bytes) -> None:
    """Decode an image of at most a million pixels."""
    open_image(io.BytesIO(data), name="image", max_pixels=1 << 20)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "manifest": manifest,
    "result": saved_result,
    "condition": condition,
    "objective": objective,
    "image": image,
}


def run(name: str, data: bytes) -> None:
    """Give one input to a reader; its own errors are what it should raise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        message = ""
        try:
            TARGETS[name](data)
        except TimmscopeError as error:
            message = str(error)
        assert len(message.splitlines()) <= 1, message
