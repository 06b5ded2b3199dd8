"""The loop of a training: order, schedule, checkpoints, previews, and the end on NaN."""

from __future__ import annotations

import copy
import io
import math
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from timmscope.drawing import sheet_figure
from timmscope.durable import make_folder
from timmscope.parameters import technique_error
from timmscope.progress import remark, task
from timmscope.results.result import environment_versions
from timmscope.store.files import write_bytes
from timmscope.techniques.session import session
from timmscope.techniques.training import checkpoint
from timmscope.techniques.training.checkpoint import Record
from timmscope.techniques.training.data import TrainingData, permutation, seed_of
from timmscope.techniques.training.network import PixelNetwork, evaluating, random_state
from timmscope.techniques.training.terms import TrainingBatch, TrainingProgress, checked_terms
from timmscope.techniques.validate_output import checked_numbers, checked_pixels, checked_type
from timmscope_registry import TechniqueError
from timmscope_registry.hooks import OwnGenerators

if TYPE_CHECKING:
    from timmscope.techniques.training.base import TrainingTechnique

POINTS = 400
"""Largest number of points of a curve."""
PREVIEWED = 8
"""Number of held-out images in a preview."""
_READ_EVERY = {"cpu": 1}
"""Steps between two looks at the loss; on other devices each look waits for the device."""


class Loop:
    """One training, from its first step or its checkpoint to its end.

    Args:
        technique: the training technique.
        network: the network in training.
        data: the images to train on.
        held_out: the images that are held out.
        record: what was done so far.
        folder: where checkpoints and previews are written.
        seed: seed of the order and of all random numbers.
        device: where to train.
    """

    def __init__(
        self,
        technique: TrainingTechnique,
        network: PixelNetwork,
        data: TrainingData,
        held_out: TrainingData,
        record: Record,
        folder: Path,
        seed: int,
        device: torch.device,
    ) -> None:
        self.technique, self.network = technique, network
        self.data, self.held_out = data, held_out
        self.record, self.folder = record, folder
        self.seed, self.device = seed, device
        self.per_epoch = max(1, len(data) // technique.batch_size)
        self.steps = self.per_epoch * technique.epochs
        self.optimiser = self._new_optimiser()
        self._safe: dict[str, Tensor] = {}
        self._waiting: list[tuple[int, dict[str, Tensor], float]] = []
        self._own_generators = False
        self._saved = self._first = record.step

    # The whole training

    def run(self, checkpoint_every: int, preview: int) -> None:
        """Train to the end, and write a checkpoint every so many steps.

        Raises:
            TechniqueError: the loss or a weight is not finite; the last checkpoint stays.
            StoreError: the disk is full.
        """
        if self.record.step == 0:
            self.save()
        left = self.steps - self.record.step
        with (
            _deterministic(self.device),
            task(self.technique.title(), total=max(left, 0)) as advance,
        ):
            while self.record.step < self.steps and not self.record.stopped:
                begun = self.record.step
                for images, classes in self._epoch():
                    if not self._step(images, classes):
                        break
                    advance(self.record.step - begun)
                    begun = self.record.step
                    if preview and begun % preview == 0:
                        self._write_preview()
                    if begun % self.per_epoch == 0:
                        self._ask_guard(images, classes)
                    ended = begun == self.steps or bool(self.record.stopped)
                    if begun % checkpoint_every == 0 or ended:
                        self.save()
        self._look()

    def _epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the rest of the current epoch's batches."""
        epoch, done = divmod(self.record.step, self.per_epoch)
        size = self.technique.batch_size
        order = permutation(len(self.data), self.seed, "order", epoch)[: self.per_epoch * size]
        yield from self.data.batches(order[done * size :], size)

    def _step(self, images: Tensor, classes: Tensor) -> bool:
        """Do one step; return False if the training went back to its checkpoint."""
        step = self.record.step
        if not self._own_generators and step == self._first:
            self._own_generators = self._draws(images, classes)
        before = None if self._own_generators else random_state(self.device)
        rate = self.technique.learning_rate * self._schedule(step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.network.train()
        passed = self.network.forwards, self.network.backwards
        with self._numbers(step):
            terms = self._loss(self.network, images, classes, step)
            self.optimiser.zero_grad(set_to_none=True)
            terms["total"].backward()
            if self.technique.max_gradient_norm is not None:
                nn.utils.clip_grad_norm_(
                    self.network.parameters(), self.technique.max_gradient_norm
                )
            if self.device.type == "cpu":
                self._finite(step, {"total": terms["total"]})  # before weights change
            self.optimiser.step()
        if before is not None and random_state(self.device) != before:
            self._own_generators = True  # a loss that did not draw in the first step
            self._go_back()
            return False
        self.record.step = step + 1
        self.record.forwards += self.network.forwards - passed[0]
        self.record.backwards += self.network.backwards - passed[1]
        self._waiting.append((step, {n: t.detach() for n, t in terms.items()}, rate))
        if len(self._waiting) >= _READ_EVERY.get(self.device.type, 20):
            self._look()
        return True

    def _loss(
        self, network: PixelNetwork, images: Tensor, classes: Tensor, step: int
    ) -> dict[str, Tensor]:
        batch = self.batch(images, classes, self.seed, "step", step)
        progress = TrainingProgress(step, self.steps, self.per_epoch)
        with batch_session(batch):
            terms = self.technique.loss(network, batch, progress)
        return checked_terms(self.technique, terms)

    def batch(self, images: Tensor, classes: Tensor, *parts: object) -> TrainingBatch:
        """Return a batch on the device, with generators that depend on the parts of a seed."""
        return TrainingBatch(images.to(self.device), classes.to(self.device), seed_of(*parts))

    # Random numbers

    def _draws(self, images: Tensor, classes: Tensor) -> bool:
        """Whether the loss draws from the process's generators, as dropout does; tried on a copy.

        Own generators cost a tenth of a millisecond per operation, so that a network without
        dropout goes without them.
        """
        trial = copy.deepcopy(self.network).train()
        with OwnGenerators(0) as own:
            self._loss(trial, images, classes, self.record.step)["total"].backward()
        return bool(own.drawn)

    def _numbers(self, *parts: object) -> AbstractContextManager[object]:
        if not self._own_generators:
            return nullcontext()
        return OwnGenerators(seed_of(self.seed, "numbers", *parts))

    # Losses

    def _schedule(self, step: int) -> float:
        """Return the factor of the learning rate at a step."""
        warm = round(self.technique.warmup * self.steps)
        if step < warm:
            return (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        if self.technique.schedule == "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        return 1 - done if self.technique.schedule == "linear" else 1.0

    def _look(self) -> None:
        """Add the losses of the last steps to the curve.

        Raises:
            TechniqueError: one of them is not finite.
        """
        window = -(-self.steps // POINTS)
        record = self.record
        for step, terms, rate in self._waiting:
            values = self._finite(step, terms)
            known = record.losses or record.sums or values
            if values.keys() != known.keys():
                did = f"returned the terms {', '.join(values)} at step {step + 1}"
                raise technique_error(self.technique, did, expected=f"{', '.join(known)} as before")
            for name, value in values.items():
                record.sums[name] = record.sums.get(name, 0.0) + value
            record.summed += 1
            if (step + 1) % window == 0 or step + 1 == self.steps:
                record.steps.append(step + 1)
                record.rates.append(rate)
                for name, value in record.sums.items():
                    record.losses.setdefault(name, []).append(value / record.summed)
                record.sums, record.summed = {}, 0
            remark(f"loss {values['total']:.4g}, rate {rate:.3g}")
        self._waiting = []

    def _finite(self, step: int, terms: dict[str, Tensor]) -> dict[str, float]:
        values = {name: float(term.detach()) for name, term in terms.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise self._diverged(step, f"{'the loss' if name == 'total' else name} is {value}")
        return values

    def _diverged(self, step: int, what: str) -> TechniqueError:
        return TechniqueError(
            f"{self.technique.title()} stopped at step {step + 1} of {self.steps}: {what}; the "
            f"checkpoint of step {self._saved} is kept in {self.folder}: lower learning_rate, or "
            "set max_gradient_norm, and train into another folder"
        )

    # Guard

    def _ask_guard(self, images: Tensor, classes: Tensor) -> None:
        """Stop if the guard of an epoch fell, and keep the weights of the epoch before."""
        record = self.record
        batch = self.batch(images, classes, self.seed, "guard", record.step)
        numbers = self._numbers("guard", record.step)
        with evaluating(self.network), numbers, batch_session(batch):
            value = self.technique.guard(self.network, batch)
        if value is None:
            return
        best = value if record.best_guard is None else max(value, record.best_guard)
        if self._safe and best - value > self.technique.guard_drop:
            self.network.module.load_state_dict(self._safe)
            epoch = record.step // self.per_epoch
            record.stopped = (
                f"the guard fell from {best:.3g} to {value:.3g} in epoch {epoch}, so the weights "
                f"are those of epoch {epoch - 1}"
            )
            return
        record.best_guard = best
        state = self.network.module.state_dict()
        self._safe = {name: value.detach().clone() for name, value in state.items()}

    # Checkpoints

    def save(self) -> None:
        """Write a checkpoint.

        Raises:
            TechniqueError: a weight is not finite; the previous checkpoint stays.
            StoreError: the disk is full.
        """
        self._look()
        state = self.network.module.state_dict()
        for name, value in state.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise self._diverged(self.record.step - 1, f"{name} is not finite")
        tensors = {f"network.{name}": value for name, value in state.items()}
        tensors |= {f"safe.{name}": value for name, value in self._safe.items()}
        tensors |= checkpoint.optimiser_tensors(self.optimiser)
        checkpoint.write(self.folder, self.record, tensors)
        self._saved = self.record.step

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take the weights and the optimiser's state of a checkpoint."""
        self.network.module.load_state_dict(_below("network.", tensors))
        self._safe = _below("safe.", tensors)
        self.optimiser = self._new_optimiser()
        checkpoint.restore_optimiser(self.optimiser, tensors)

    def _go_back(self) -> None:
        kept = checkpoint.read(self.folder)
        assert kept is not None  # written before the first step
        self.record, self._waiting = kept[0], []
        self.restore(kept[1])

    def _new_optimiser(self) -> torch.optim.Optimizer:
        """Return the optimiser of the technique's parameters."""
        chosen = self.technique
        weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        settings: dict[str, Any] = {
            "lr": chosen.learning_rate,
            "weight_decay": chosen.weight_decay,
        }
        if chosen.optimizer == "sgd":
            return torch.optim.SGD(weights, momentum=chosen.momentum, **settings)
        kind = torch.optim.Adam if chosen.optimizer == "adam" else torch.optim.AdamW
        return kind(weights, **settings)

    # Held-out images

    def judged(self) -> dict[str, float]:
        """Return the mean loss and figures over the held-out images."""
        totals: dict[str, float] = {}
        size = self.technique.batch_size
        places = torch.arange(len(self.held_out))
        batches = self.held_out.batches(places, size)
        progress = TrainingProgress(self.steps, self.steps, self.per_epoch)
        count = -(-len(self.held_out) // size)
        description = f"{self.technique.title()}: held-out images"
        with evaluating(self.network), _deterministic(self.device):
            for number, (images, classes) in enumerate(
                self.technique.track(batches, description, count)
            ):
                batch = self.batch(images, classes, self.seed, "held out", number)
                own = OwnGenerators(seed_of(self.seed, "held out numbers", number))
                with own, batch_session(batch):
                    terms = self.technique.loss(self.network, batch, progress)
                    figures = self.technique.evaluate(self.network, batch)
                for name, term in checked_terms(self.technique, terms).items():
                    known = "loss" if name == "total" else name
                    totals[known] = totals.get(known, 0.0) + float(term.detach()) * len(images)
                for name, values in figures.items():
                    checked = checked_numbers(
                        self.technique, values, f"the figure {name!r}", (len(images),)
                    )
                    totals[name] = totals.get(name, 0.0) + float(checked.double().sum())
        return {name: total / len(self.held_out) for name, total in totals.items()}

    def preview(self) -> dict[str, Tensor]:
        """Return the technique's rows of pictures of the first held-out images, by name."""
        places = torch.arange(min(PREVIEWED, len(self.held_out)))
        ((images, classes),) = self.held_out.batches(places, PREVIEWED)
        batch = self.batch(images, classes, self.seed, "preview")
        own = OwnGenerators(seed_of(self.seed, "preview numbers"))
        with evaluating(self.network), own, batch_session(batch):
            rows = checked_type(self.technique, self.technique.preview(self.network, batch), dict)
        shape = (len(images), "C", "H", "W")
        checked = {name: checked_pixels(self.technique, row, shape) for name, row in rows.items()}
        if len({row.shape for row in checked.values()}) > 1:
            shapes = [tuple(row.shape) for row in checked.values()]
            did = f"returned rows of pictures of the shapes {shapes}"
            raise technique_error(self.technique, did, expected="one shape")
        return checked

    def _write_preview(self) -> None:
        rows = self.preview()
        if not rows:
            return
        step = self.record.step
        buffer = io.BytesIO()
        sheet_figure(
            torch.cat(list(rows.values())),
            columns=len(next(iter(rows.values()))),
            row_labels=list(rows),
            title=f"{self.technique.title()}, step {step}",
        ).savefig(buffer, dpi=110)
        make_folder(self.folder / "previews")
        write_bytes(self.folder / "previews" / f"step-{step:08d}.png", buffer.getvalue())


def batch_session(batch: TrainingBatch) -> AbstractContextManager[None]:
    """Let the methods of other techniques draw numbers that depend on the batch."""
    return session(batch.seed % 2**31, range(len(batch.images)))


def environment(device: torch.device) -> dict[str, Any]:
    """Return what the last bits of a training depend on, besides its settings."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "versions": environment_versions(),
    }


def _deterministic(device: torch.device) -> AbstractContextManager[object]:
    """Choose the same kernels in every run on a GPU."""
    if device.type != "cuda":
        return nullcontext()
    flags: AbstractContextManager[object] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
