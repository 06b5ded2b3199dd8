"""Loads networks that a training wrote: their weights, and the card that says how to make them.

The card names the training technique by its registered id, its parameters and the model that it
got. The technique's `build` makes the network again, and then the weights are loaded; a card never
names code to import.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

import timmscope.checked_json as checked_json
from timmscope.models.checkpoints import load_weights
from timmscope.models.hooked_model import HookedModel
from timmscope.models.loading import load_model
from timmscope.models.preprocessing import Preprocessing
from timmscope.parameters import Parameters, named_values
from timmscope.safe_files import open_regular, read_regular, why
from timmscope.trust import is_trusted
from timmscope_registry import ModelError, PluginError, TimmscopeError, get_registry
from timmscope_registry.contributions import missing_plugin

if TYPE_CHECKING:
    import torch

CARD = "card.json"
WEIGHTS = "weights.safetensors"
UNFINISHED = "checkpoint.safetensors"
"""State of a training that has not finished."""
KIND = "training"
"""What a card is of, and the base of the technique that it names."""
_MOST_BYTES = 1 << 26
"""Size of a card that is read."""


class Builds(Protocol):
    """A training technique, as far as loading needs it."""

    def make_network(self, model: HookedModel, seed: int = 0) -> nn.Module:
        """Make the network, with weights that are not trained yet."""
        ...


@dataclass(frozen=True, kw_only=True)
class Card:
    """How a network was trained, as `card.json` says.

    Attributes:
        technique: registered id of the training technique.
        parameters: its parameters as JSON values.
        model: id of the model that the technique's `build` got.
        model_sha256: digest of that model's weights.
        preprocessing: resize, crop and normalisation of the trained network.
        classes: names of its classes; None if they have none.
        weights_sha256: digest of the file of the weights.
        seed: seed of the first weights, the order of the images and all random numbers.
        data: fingerprints and numbers of the images, and their licence as the caller gave it.
        curve: steps, learning rates, and the mean of each term of the loss since the last of these.
        held_out: figures on held-out images.
        cost: forward and backward passes per image and step, and how often as many that is as
            standard training, which has one of each.
        environment: device, processor, threads and versions; one entry unless the training was
            resumed elsewhere.
        stopped: why it ended before the last epoch; empty if it did not.
        named: id and SHA-256 of what the parameters name, as in `Provenance`.
    """

    technique: str
    parameters: dict[str, Any]
    model: str
    model_sha256: str
    preprocessing: dict[str, Any]
    classes: list[str] | None
    weights_sha256: str
    seed: int
    data: dict[str, Any]
    curve: dict[str, Any]
    held_out: dict[str, Any]
    cost: dict[str, Any]
    environment: list[dict[str, Any]]
    stopped: str
    named: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the contents of `card.json`, with a digest."""
        return checked_json.dump(self._values(), indent=2)

    @property
    def digest(self) -> str:
        """SHA-256 of the card's values."""
        return checked_json.digest_of(self._values())

    def _values(self) -> dict[str, Any]:
        values = {"kind": KIND, **dataclasses.asdict(self)}
        if not self.named:
            del values["named"]
        return values


_TYPES = {
    "str": str,
    "int": int,
    "dict[str, Any]": dict,
    "list[dict[str, Any]]": list,
    "list[str] | None": (list, type(None)),
}


def card_of(path: str | os.PathLike[str]) -> tuple[Path, Card]:
    """Return the file of the weights and the card of a trained network.

    Args:
        path: the folder that the training wrote, or the weights in it.

    Raises:
        ModelError: there is no card, or it is damaged, edited or of something else.
    """
    path = Path(path).expanduser()
    folder, weights = (path, path / WEIGHTS) if path.is_dir() else (path.parent, path)
    file = folder / CARD
    try:
        values = checked_json.load(read_regular(file, _MOST_BYTES))
        return weights, _card(values)
    except FileNotFoundError as error:
        if (folder / UNFINISHED).exists():
            raise ModelError(
                f"{folder} holds a training that has not finished: run it again with the same "
                "settings, and it resumes"
            ) from error
        raise ModelError(
            f"{folder} has no {CARD}: expected a folder that a training wrote, or "
            "file:WEIGHTS?arch=NAME"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as the card of a network: {why(error)}") from error


def _card(values: dict[str, Any]) -> Card:
    if (kind := values.pop("kind", None)) != KIND:
        raise ValueError(f"it is of the kind {kind!r}, expected {KIND!r}")
    values = {"named": {}, **values}
    for field in dataclasses.fields(Card):
        if field.name not in values:
            raise ValueError(f"it has no {field.name}")
        if not isinstance(values[field.name], _TYPES[str(field.type)]):  # type: ignore[arg-type]
            found = type(values[field.name]).__name__
            raise ValueError(f"its {field.name} is of type {found}, expected {field.type}")
    if more := sorted(values.keys() - {field.name for field in dataclasses.fields(Card)}):
        raise ValueError(f"it has an unknown {more[0]}")
    return Card(**values)


def load_trained(
    path: str | os.PathLike[str],
    model: HookedModel | None = None,
    *,
    technique: Builds | None = None,
    device: str | torch.device | None = None,
) -> HookedModel:
    """Load a network that a training wrote.

    Args:
        path: the folder that the training wrote, or the weights in it.
        model: the model that was trained, for one that cannot be loaded by its id, such as a module
            in memory. Only its architecture counts.
        technique: the training technique, for one that no plugin registers.
        device: the device; by default the CPU.

    Raises:
        ModelError: there is no such network, its card or weights are damaged, edited or do not
            belong together, the model cannot be loaded, or its user does not trust the card.
        PluginError: no plugin provides the technique.
    """
    weights, card = card_of(path)
    made = technique if technique is not None else technique_of(card, weights.parent)
    state = read_weights(weights, card)
    base = model if model is not None else _base_model(card, weights.parent)
    network = made.make_network(base)
    load_weights(network, state, f"{weights} into the network of {card.technique}", prefix="")
    loaded = as_model(network.eval().requires_grad_(False), card, id=f"file:{Path(path)}")
    return loaded.to(device) if device is not None else loaded


def as_model(network: nn.Module, card: Card, *, id: str) -> HookedModel:
    """Return a trained network with the preprocessing and classes of its card.

    Raises:
        ModelError: the card's preprocessing has another form.
    """
    try:
        known = Preprocessing.restored(card.preprocessing)
    except TypeError as error:
        raise ModelError(f"the card of {id} has another preprocessing: {error}") from error
    return HookedModel(
        network,
        mean=known.mean,
        std=known.std,
        input_size=known.input_size,
        interpolation=known.interpolation,
        crop_pct=known.crop_pct,
        class_names=card.classes,
        id=id,
    )


def technique_of(card: Card, folder: Path, kind: type[Builds] | None = None) -> Builds:
    """Return the technique of a card with its parameters.

    Args:
        card: the card.
        folder: where it is.
        kind: the technique's class, for one that no plugin registers.

    Raises:
        ModelError: the card names no training, its parameters do not fit the technique of today,
            or they name files and models that the user does not trust it to open.
        PluginError: no plugin provides the technique.
    """
    if kind is None:
        entries = {entry.id: entry for entry in get_registry().techniques()}
        if card.technique not in entries:
            raise PluginError(f"{folder}: {missing_plugin('technique', card.technique)}")
        entry = entries[card.technique]
        if entry.spec.base != KIND:
            raise ModelError(
                f"the card in {folder} names {card.technique}, which is no training but has the "
                f"base {entry.spec.base!r}"
            )
        kind = entry.load()
    try:
        made: Builds = kind(**card.parameters)
    except TypeError as error:
        raise ModelError(f"the card in {folder} has no parameters: {error}") from error
    except TimmscopeError as error:
        raise ModelError(
            f"the card in {folder} does not fit {card.technique} of today: {error}"
        ) from error
    named = named_values(made) if isinstance(made, Parameters) else ()
    opened = [each for each in named if each.meant.kind != "technique"]
    if opened:
        wanted = ", ".join(f"the {each.meant.kind} {each.value}" for each in opened)
        if not is_trusted(folder, card.digest, wanted):
            raise _untrusted(folder, wanted, "technique=…")
    return made


def _untrusted(folder: Path, wanted: str, other: str) -> ModelError:
    return ModelError(
        f"{folder}: you have not trained this network, and its card opens {wanted}: run with "
        "--trust, set TIMMSCOPE_TRUST to a folder that you trust, or use load_trained(folder, "
        f"{other})"
    )


def read_weights(weights: Path, card: Card) -> dict[str, Tensor]:
    """Return the tensors of a file of weights.

    Raises:
        ModelError: it cannot be read, or is not the file that the card names by its digest.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        with open_regular(weights) as file:
            data = file.read()
    except (OSError, ValueError) as error:
        raise ModelError(f"{weights} cannot be read: {why(error)}") from error
    if (found := hashlib.sha256(data).hexdigest()) != card.weights_sha256:
        raise ModelError(
            f"{weights} has the digest {found[:12]}…, its card says {card.weights_sha256[:12]}…: "
            "the weights were damaged, edited or belong to another card"
        )
    try:
        tensors: dict[str, Tensor] = load(data)
        return tensors
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{weights} cannot be read as weights: {why(error)}") from error


def _base_model(card: Card, folder: Path) -> HookedModel:
    """Return the model that was trained, loaded by its id, without its own weights mattering."""
    if card.model.startswith("module:"):
        raise ModelError(
            f"{folder} was trained from {card.model}, a module in memory: load it with "
            "load_trained(folder, model)"
        )
    wanted = f"the model {card.model}"
    if not is_trusted(folder, card.digest, wanted):
        raise _untrusted(folder, wanted, "model")
    try:
        return load_model(card.model)
    except TimmscopeError as error:
        raise ModelError(
            f"the model that {folder} was trained from, {card.model}, cannot be loaded ({error}): "
            "use load_trained(folder, model)"
        ) from error
