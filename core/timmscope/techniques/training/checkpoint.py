"""Writes and reads the state of a training, so that a killed one resumes where it was.

A checkpoint is one safetensors file: weights and the optimiser's state as tensors, everything else
as JSON in the file's metadata. It replaces the previous one by a rename, so a process that is
killed at any moment leaves one of the two.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import timmscope.checked_json as checked_json
from timmscope.models.trained import UNFINISHED
from timmscope.models.weights_digest import add_weight
from timmscope.safe_files import open_regular, why
from timmscope.store.files import write_bytes
from timmscope_registry import StoreCorrupted

_KEY = "timmscope"


@dataclass
class Record:
    """What a training knows besides its tensors.

    Attributes:
        settings: everything that decides its result; a resumed training has the same.
        environment: devices, threads and versions that it has run with.
        step: number of steps done.
        steps: the step at the end of each window of the curve.
        rates: learning rate at that step.
        losses: mean of each term in each window.
        sums: sum of each term in the window that has begun.
        summed: number of steps in these sums.
        forwards: images that have passed forwards in training.
        backwards: images that have passed backwards.
        best_guard: the highest value of the guard; None before the first.
        stopped: why the training ended early; empty if it did not.
    """

    settings: dict[str, Any]
    environment: list[dict[str, Any]]
    step: int = 0
    steps: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    summed: int = 0
    forwards: int = 0
    backwards: int = 0
    best_guard: float | None = None
    stopped: str = ""


def write(folder: Path, record: Record, tensors: Mapping[str, Tensor]) -> None:
    """Replace the checkpoint of a folder.

    Raises:
        StoreError: the disk is full or read-only; the previous checkpoint is still there.
    """
    values = {**asdict(record), "tensors_sha256": _digest(tensors)}
    text = checked_json.dump(values).decode()
    write_bytes(folder / UNFINISHED, to_safetensors(tensors, {_KEY: text}))


def read(folder: Path) -> tuple[Record, dict[str, Tensor]] | None:
    """Return the checkpoint of a folder; None if there is none.

    Raises:
        StoreCorrupted: it was damaged or edited.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / UNFINISHED
    try:
        with open_regular(path) as file:
            data = file.read()
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        values = checked_json.load(metadata[_KEY].encode())
        if values.pop("tensors_sha256") != _digest(tensors):
            raise ValueError("its tensors differ from their digest")
        return Record(**values), tensors
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StoreCorrupted(
            f"{path} cannot be read ({why(error)}), so the training cannot resume: delete it to "
            "begin again",
            shard=path.name,
        ) from error


def to_safetensors(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return tensors as the bytes of a safetensors file; shared memory is written twice."""
    from safetensors.torch import save

    plain = {name: _plain(value) for name, value in tensors.items()}
    data: bytes = save(plain, metadata)
    return data


def _plain(value: Tensor) -> Tensor:
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        add_weight(digest, name, tensors[name])
    return digest.hexdigest()


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of an optimiser, named by the place of each parameter."""
    places = _parameters(optimiser)
    return {
        f"optimizer.{number}.{name}": value
        for number, parameter in enumerate(places)
        for name, value in optimiser.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser the state of a checkpoint, in the memory format of its parameters."""
    places = _parameters(optimiser)
    for key, value in tensors.items():
        if not key.startswith("optimizer."):
            continue
        _, number, name = key.split(".", 2)
        parameter = places[int(number)]
        if value.shape == parameter.shape:
            value = torch.empty_like(parameter, requires_grad=False).copy_(value)
        optimiser.state[parameter][name] = value


def _parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]
