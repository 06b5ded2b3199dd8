"""Counts the forward and backward passes of each image of a batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar

import torch
from torch import Tensor


class PassCounter:
    """Counts the forward and backward passes of each image of a batch.

    Passes of one model count, whoever starts them: through the model, a copy of it for speed,
    another wrapper of its module, or the module itself. Those of other models are counted apart.

    Args:
        batch: number of images.
        owner: what the model and its copies have in common.

    Attributes:
        forwards: `(B,)` int64, forward passes of each image.
        backwards: `(B,)` int64, backward passes that reached each image.
        others: the same two counts of each other model, by its id.
        calls: number of forwards that were seen, also of other images.
    """

    def __init__(self, batch: int, owner: object = None) -> None:
        self.forwards = torch.zeros(batch, dtype=torch.long)
        self.backwards = torch.zeros(batch, dtype=torch.long)
        self.others: dict[str, tuple[Tensor, Tensor]] = {}
        self.calls = 0
        self._owner = owner
        self._rows: Tensor | None = None

    @contextlib.contextmanager
    def only(self, rows: Tensor) -> Iterator[None]:
        """Count forwards of `len(rows)` images for those rows of the batch, inside the context."""
        outer, self._rows = self._rows, rows.cpu()
        try:
            yield
        finally:
            self._rows = outer

    def watch(self, inputs: Tensor, owner: object, id: str) -> None:
        """Count one forward of `inputs`, and each backward that reaches them.

        Args:
            inputs: what the module gets, a tensor of this forward only.
            owner: what the model that runs and its copies have in common.
            id: id of that model.
        """
        self.calls += 1
        forwards, backwards = self.forwards, self.backwards
        if owner is not self._owner:
            zero = torch.zeros_like(forwards)
            forwards, backwards = self.others.setdefault(id, (zero, zero.clone()))
        rows = self._rows if self._rows is not None else torch.arange(len(self.forwards))
        if len(inputs) % max(len(rows), 1):
            return  # a forward of other images, such as a reference image
        times = len(inputs) // max(len(rows), 1)
        forwards[rows] += times
        if inputs.requires_grad:

            def count(_: Tensor) -> None:
                backwards[rows] += times

            inputs.register_hook(count)


_counters: ContextVar[tuple[PassCounter, ...]] = ContextVar("timmscope_pass_counters", default=())


def counting_only(rows: Tensor) -> AbstractContextManager[None]:
    """Count forwards inside the context for these rows `(n,)` of the batch that is counted.

    Nothing changes where no `HookedModel.count_passes` is open; of several, the innermost counts.
    """
    counters = _counters.get()
    return counters[-1].only(rows) if counters else contextlib.nullcontext()


@contextlib.contextmanager
def counting(counter: PassCounter) -> Iterator[PassCounter]:
    """Let a counter see the forwards of models inside the context."""
    token = _counters.set((*_counters.get(), counter))
    try:
        yield counter
    finally:
        _counters.reset(token)


def counted(run: Callable[[Tensor], Tensor], inputs: Tensor, owner: object, id: str) -> Tensor:
    """Run a model's module, and count a pass unless the counted module itself ran.

    Args:
        run: runs the module.
        inputs: what the module gets.
        owner: what the model and its copies have in common.
        id: id of the model.
    """
    counters = _counters.get()
    if not counters:
        return run(inputs)
    seen = [counter.calls for counter in counters]
    token = _counters.set(())  # what this module calls inside is part of this pass
    try:
        outputs = run(inputs)
    finally:
        _counters.reset(token)
    for counter, before in zip(counters, seen, strict=True):
        if counter.calls == before:
            counter.watch(inputs, owner, id)
    return outputs
