"""Base class of trainings: techniques that make a network by gradient steps on an image set.

The base owns the order of the images, the optimiser, checkpoints and cards. A subclass says how the
network is made and what its loss is.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast, final

import torch
from pydantic import Field
from torch import Tensor, nn

from timmscope.durable import make_folder
from timmscope.images import ImageSource, open_images
from timmscope.models import HookedModel, Preprocessing
from timmscope.models.checkpoints import load_weights
from timmscope.models.trained import CARD, UNFINISHED, WEIGHTS, Card, card_of, read_weights
from timmscope.parameters import technique_error
from timmscope.results.result import Provenance
from timmscope.store.files import TEMPORARY, write_bytes
from timmscope.store.lock import NAME as LOCK
from timmscope.store.lock import StoreLock
from timmscope.store.settings import differences, require_same_settings
from timmscope.techniques import arguments
from timmscope.techniques.base import Technique, require_model
from timmscope.techniques.opening import main_model, opening, openings_of
from timmscope.techniques.restore_state import restore_state
from timmscope.techniques.session import session
from timmscope.techniques.training import checkpoint
from timmscope.techniques.training.checkpoint import Record
from timmscope.techniques.training.data import (
    TrainingData,
    class_names,
    classes_if_any,
    classes_of,
    labels_of,
    split,
)
from timmscope.techniques.training.loop import Loop, environment
from timmscope.techniques.training.network import PixelNetwork, evaluating
from timmscope.techniques.training.result import Training
from timmscope.techniques.training.terms import TrainingBatch, TrainingProgress
from timmscope.techniques.validate_output import checked_type
from timmscope.trust import remember
from timmscope_registry import (
    ParameterError,
    StoreError,
    UnsupportedModel,
    get_registry,
)
from timmscope_registry.contributions import entry_of
from timmscope_registry.hooks import OwnGenerators

__all__ = ["TrainingBatch", "TrainingProgress", "TrainingTechnique", "evaluating"]

_BEFORE_FIRST = (LOCK, UNFINISHED + TEMPORARY, ".saved")
"""The only files that a training killed before its first checkpoint can leave behind."""


class _FamilyOfSpec:
    """The family that the spec of a registered training names; without one, the first that fits."""

    def __get__(self, instance: object, owner: type[Technique]) -> str:
        entry = entry_of(owner, get_registry().techniques())
        return "defence" if entry is None else entry.spec.family


class TrainingTechnique(Technique):
    """Base class of trainings; a subclass implements `build` and `loss`.

    The network takes images `(B, C, H, W)` in [0, 1] in `loss`, as everything does; the
    normalisation of the model is in front of it, unless the class says `normalised = False`.
    """

    family: ClassVar[str] = cast(str, _FamilyOfSpec())
    base: ClassVar[str] = "training"
    normalised: ClassVar[bool] = True
    """Whether what `build` returns takes images that are normalised as the model's are."""
    needs_labels: ClassVar[bool] = True
    """Whether every image needs a label."""
    reads_labels: ClassVar[bool] = False
    """Whether labels are used where images have them, although none needs one: those of an image
    set in which every label is a class."""
    guard_drop: ClassVar[float] = 0.1
    """The fall of `guard` below its highest value that ends a training."""

    epochs: int = Field(default=20, ge=1)
    """How often every image is seen."""
    batch_size: int = Field(default=128, ge=1)
    """Images per step; the last images of an epoch that fill no batch are left out of it."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimiser."""
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    """Largest learning rate."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of sgd; the others have their own."""
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight decay; of adamw decoupled from the gradient."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up: constant, or down to 0."""
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps in which the learning rate rises linearly to its largest value."""
    max_gradient_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Longer gradients of all weights together are scaled to this length."""
    held_out_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of the images that are held out, if no held-out images are given."""

    @abstractmethod
    def build(self, model: HookedModel) -> nn.Module:
        """Return the network to train: a copy (`model.trainable_copy()`) or a new one.

        It shares no weights with the model. A card makes the network again with this method and
        then loads the weights, so the result must depend only on the parameters and the model.

        Args:
            model: the model that the caller gave.
        """

    @abstractmethod
    def loss(
        self, network: nn.Module, batch: TrainingBatch, progress: TrainingProgress
    ) -> dict[str, Tensor]:
        """Return the loss as `total`, and by name other scalars worth a curve.

        Args:
            network: takes images `(B, C, H, W)` in [0, 1]; in train mode. `evaluating(network)`
                puts it into eval mode inside a context.
            batch: images, labels, and a generator per image for all random numbers.
            progress: step and share of the training, for schedules.
        """

    def evaluate(self, network: nn.Module, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return figures of held-out images, `(B,)` each, whose means the card keeps.

        Args:
            network: the trained network, in eval mode.
            batch: held-out images.
        """
        return {}

    def preview(self, network: nn.Module, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return rows of pictures `(B, C, H, W)` in [0, 1] by name, one picture per image.

        Args:
            network: the network so far, in eval mode.
            batch: up to 8 held-out images.
        """
        return {}

    def guard(self, network: nn.Module, batch: TrainingBatch) -> float | None:
        """Return a figure at the end of an epoch that shows a collapse; None without one.

        If it falls by more than `guard_drop` below its highest value, the training ends with the
        weights of the epoch before.

        Args:
            network: the network so far, in eval mode.
            batch: the last batch of the epoch.
        """
        return None

    @final
    def model_of(self, network: nn.Module, batch: TrainingBatch) -> HookedModel:
        """Return the network in training as a model, for the method of another technique.

        Inside a forward of the model, the network is in eval mode and its weights get no gradient,
        as an attack on it needs: `self.open_technique(self.attack).perturb(model, images, goal)`.

        Args:
            network: the network that `loss` got.
            batch: the batch that `loss` got.
        """
        channels = batch.images.shape[1]
        size = tuple(batch.images.shape[1:])
        return HookedModel(network, mean=(0.0,) * channels, std=(1.0,) * channels, input_size=size)

    @final
    def start_model(self) -> HookedModel:
        """Return the model that the caller gave, for a loss that compares with its activations.

        It does not change. The card counts only the passes of the network in training.

        Raises:
            TechniqueError: no call runs.
        """
        model = main_model()
        if model is None:
            did = "was asked for its model outside a call"
            raise technique_error(self, did, advice="call the technique, not its method")
        return model

    @final
    def make_network(self, model: HookedModel, seed: int = 0) -> nn.Module:
        """Return what `build` makes, with its first weights.

        Args:
            model: the model.
            seed: seed of the first weights.

        Raises:
            TechniqueError: it is no module, has no weights to train, or shares some with the model.
            UnsupportedModel: the model is a function, behind defences, or not in float32 or
                float64.
        """
        require_model(model)
        if model.is_function:
            raise UnsupportedModel(
                f"{model.id} is a prediction function and has no weights: a training starts from a "
                "module"
            )
        if model.defences:
            raise UnsupportedModel(
                f"{model.id} is behind defences, which a training would drop: train the model "
                "without them, and put the trained one behind them"
            )
        if model.dtype not in (torch.float32, torch.float64):
            raise UnsupportedModel(
                f"{model.id} is in {model.dtype}, too coarse for the small steps of a training: "
                "load it in float32"
            )
        runs = openings_of(self) is not None
        with (
            nullcontext() if runs else opening([self], model, seed, when_needed=True),
            session(seed),
            OwnGenerators(seed),
            restore_state(self, model, model.weights_sha256),
        ):
            network = checked_type(self, self.build(model), nn.Module)
        own = {_place(value) for value in _tensors(model.module) if value.numel()}
        if any(_place(value) in own for value in _tensors(network) if value.numel()):
            did = "built a network that shares weights with the model"
            raise technique_error(self, did, expected="a copy, as model.trainable_copy() is")
        if not any(weight.requires_grad for weight in network.parameters()):
            raise technique_error(self, "built a network without weights that require a gradient")
        return network

    @final
    def __call__(
        self,
        model: arguments.Model,
        images: arguments.ImageSet,
        *,
        output: arguments.OutputFolder,
        held_out: arguments.ImageSet = None,
        licence: str = "",
        preview: int = 0,
        checkpoint_every: int = 200,
        workers: int | None = None,
        seed: int = 0,
    ) -> Training:
        """Train, or resume a training that was killed.

        Args:
            model: the model to start from; its own weights do not change.
            images: images to train on, with labels: a folder with a folder per class, an .npz or
                HDF5 file with labels, and all else that `open_images` takes.
            output: folder for checkpoints, and at the end for `weights.safetensors` and
                `card.json`. A folder with a training of the same settings is resumed.
            held_out: images to evaluate on, of the same kind; by default a share of the images.
            licence: licence of the images, which the card repeats.
            preview: steps between two previews, pictures of held-out images; 0 for none.
            checkpoint_every: steps between two checkpoints.
            workers: processes that read images which do not fit into memory; by default one per
                core, at most 8.
            seed: seed of the first weights, the order of the images and all random numbers.

        Raises:
            ImageError: the images cannot be opened or read.
            ParameterError: labels are missing or are no classes, or an argument is out of range.
            StoreError: the folder holds something else, cannot be written, or another process
                trains there.
            StoreMismatch: the folder holds a training with other settings.
            StoreCorrupted: its checkpoint was damaged.
            TechniqueError: the loss is not finite, or a method did not return what it should.
            UnsupportedModel: the model is a function, behind defences, or not in float32 or
                float64.
        """
        require_model(model)
        for name, value, least in (
            ("preview", preview, 0),
            ("checkpoint_every", checkpoint_every, 1),
            ("workers", 0 if workers is None else workers, 0),
        ):
            if not isinstance(value, int) or value < least:
                raise ParameterError(
                    f"{name} is {value!r}: expected an int, {least} or more", parameter=name
                )
        if preview and type(self).preview is TrainingTechnique.preview:
            raise ParameterError(f"{self.title()} makes no previews", parameter="preview")
        model.preprocessing.require_pictures()
        with opening([self], model, seed) as opened:
            facts = self._provenance(model, seed)
            result = self._run(
                model, images, held_out, Path(output), licence, preview, checkpoint_every, workers,
                facts,
            )  # fmt: skip
        return opened.reported(result)

    def _run(
        self,
        model: HookedModel,
        images: Any,
        held_out: Any,
        folder: Path,
        licence: str,
        preview: int,
        checkpoint_every: int,
        workers: int | None,
        facts: Provenance,
    ) -> Training:
        seed = facts.seed
        with session(seed), restore_state(self, model, facts.weights_sha256):
            network = self.make_network(model, seed).to(model.device)
            prepared = self._prepared(model, images, held_out, seed, workers, licence)
            _make(folder)
            with StoreLock(folder, "training"):
                card, pictures = self._trained(
                    network, prepared, folder, seed, checkpoint_every, preview
                )
        return Training.of(facts, card, folder, pictures)

    def _prepared(
        self,
        model: HookedModel,
        images: Any,
        held_out: Any,
        seed: int,
        workers: int | None,
        licence: str,
    ) -> _Prepared:
        """Open the images and note everything that decides the training's result."""
        source = open_images(images)
        other = source if held_out is None else open_images(held_out)
        names, known = None, model.preprocessing
        if self.needs_labels:
            names = class_names(model, labels_of(source))
        if not self.normalised:
            channels = known.input_size[0]
            known = replace(known, mean=(0.0,) * channels, std=(1.0,) * channels)
        if held_out is None:
            ids, judged = split(len(source), self.held_out_share, seed)
        else:
            ids, judged = torch.arange(len(source)), torch.arange(len(other))

        def data(opened: ImageSource, chosen: Tensor) -> TrainingData:
            classes = torch.full((len(opened),), -1)
            if self.needs_labels:
                classes = classes_of(model, names, labels_of(opened))
            elif self.reads_labels:
                classes = classes_if_any(model, opened)
            return TrainingData(opened, chosen, classes[chosen], known, workers)

        settings = {
            "technique": self.technique_id(),
            "parameters": self._recorded_in_call(),
            **({"named": named} if (named := self._named_in_call()) else {}),
            "model": model.id,
            "model_sha256": model.weights_sha256,
            "preprocessing": known.to_dict(),
            "classes": names,
            "seed": seed,
            "data": {
                "fingerprint": source.fingerprint(),
                "images": len(ids),
                "held_out_fingerprint": other.fingerprint(),
                "held_out_images": len(judged),
                "licence": licence,
            },
        }
        return _Prepared(
            data(source, ids), data(other, judged), json.loads(json.dumps(settings)), model.device
        )

    def _trained(
        self,
        network: nn.Module,
        prepared: _Prepared,
        folder: Path,
        seed: int,
        checkpoint_every: int,
        preview: int,
    ) -> tuple[Card, dict[str, Tensor]]:
        """Train, or take what a training in the folder has done; return card and pictures."""
        settings = prepared.settings
        known = Preprocessing.restored(settings["preprocessing"]) if self.normalised else None
        pixels = PixelNetwork(network, known)
        here = environment(prepared.device)
        finished = _card(folder, settings)
        kept = None if finished else checkpoint.read(folder)
        if finished is None and kept is None:
            _require_empty(folder)
        record, tensors = kept or (Record(settings, [here]), {})
        require_same_settings(folder, "a training", record.settings, settings)
        loop = Loop(
            self, pixels, prepared.data, prepared.held_out, record, folder, seed, prepared.device
        )
        if finished is not None:
            load_weights(network, read_weights(folder / WEIGHTS, finished), f"{folder}", prefix="")
            return finished, loop.preview()
        if kept is not None:
            _compare_environments(folder, record, here)
            loop.restore(tensors)
        loop.run(checkpoint_every, preview)
        card = self._write(loop, prepared, folder)
        return card, loop.preview()

    def _write(self, loop: Loop, prepared: _Prepared, folder: Path) -> Card:
        """Write weights and card, and remove the checkpoint."""
        held_out = loop.judged()
        record = loop.record
        weights = checkpoint.to_safetensors(loop.network.module.state_dict())
        seen = record.step * min(self.batch_size, len(prepared.data))
        card = Card(
            **prepared.settings,
            weights_sha256=hashlib.sha256(weights).hexdigest(),
            curve={"steps": record.steps, "rates": record.rates, "losses": record.losses},
            held_out=held_out,
            cost={
                "forwards": record.forwards / seen,
                "backwards": record.backwards / seen,
                "times_standard": (record.forwards + record.backwards) / (2 * seen),
            },
            environment=record.environment,
            stopped=record.stopped,
        )
        write_bytes(folder / WEIGHTS, weights)
        write_bytes(folder / CARD, card.to_bytes())
        (folder / UNFINISHED).unlink(missing_ok=True)
        remember(card.digest)
        return card


class _Prepared(NamedTuple):
    data: TrainingData
    held_out: TrainingData
    settings: dict[str, Any]
    device: torch.device


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _place(value: Tensor) -> tuple[torch.device, int]:
    return value.device, value.untyped_storage().data_ptr()


def _make(folder: Path) -> None:
    try:
        make_folder(folder)
    except OSError as error:
        raise StoreError(
            f"{folder}: no folder can be made here ({error.strerror or error}); choose another one "
            "for the training"
        ) from error


def _require_empty(folder: Path) -> None:
    others = sorted(entry.name for entry in folder.iterdir() if entry.name not in _BEFORE_FIRST)
    if others:
        raise StoreError(
            f"{folder}: holds {others[0]} and no training; choose another folder for the training"
        )


def _card(folder: Path, settings: dict[str, Any]) -> Card | None:
    """Return the card of a training of the same settings that has finished; None if it has not."""
    if not (folder / CARD).exists():
        return None
    _, card = card_of(folder)
    known = {name: getattr(card, name) for name in settings}
    require_same_settings(folder, "a training", known, settings)
    (folder / UNFINISHED).unlink(missing_ok=True)
    return card


def _compare_environments(folder: Path, record: Record, here: dict[str, Any]) -> None:
    """Note another machine, number of threads or version, with which the last bits may differ."""
    if record.environment[-1] == here:
        return
    shown = "; ".join(differences(record.environment[-1], here))
    warnings.warn(
        f"the training in {folder} resumes elsewhere ({shown}): its last bits may differ from "
        "those of an uninterrupted one, and its card names both",
        stacklevel=2,
    )
    record.environment.append(here)
