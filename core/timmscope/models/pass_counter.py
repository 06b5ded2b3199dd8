"""Counts the forward and backward passes of each image of a batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
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
        others: the same two counts of each other model, by its id; of one that a parameter names,
            by the parameter.
        calls: number of forwards that were seen, also of other images.
    """

    def __init__(self, batch: int, owner: object = None) -> None:
        self.forwards = torch.zeros(batch, dtype=torch.long)
        self.backwards = torch.zeros(batch, dtype=torch.long)
        self.others: dict[str, tuple[Tensor, Tensor]] = {}
        self.calls = 0
        self._owner = owner
        self._rows: Tensor | None = None
        self._part: Tensor | None = None

    @contextlib.contextmanager
    def only(self, rows: Tensor) -> Iterator[None]:
        """Count forwards of `len(rows)` images for those rows of the batch, inside the context.

        A row that is there several times counts as often. A counter of one image counts all
        forwards for this image.
        """
        outer = self._rows
        if len(self.forwards) > 1:
            self._rows = rows.cpu() if self._part is None else self._part[rows.cpu()]
        try:
            yield
        finally:
            self._rows = outer

    @contextlib.contextmanager
    def part(self, rows: Tensor) -> Iterator[None]:
        """Let the rows of `only` be those of a part of the batch, inside the context.

        Args:
            rows: the rows of the batch that make the part.
        """
        outer = self._part
        with self.only(rows):
            self._part = self._rows
            try:
                yield
            finally:
                self._part = outer

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
            name = _names.get().get(owner, id)
            forwards, backwards = self.others.setdefault(name, (zero, zero.clone()))
        rows = self._rows if self._rows is not None else torch.arange(len(self.forwards))
        if len(inputs) % max(len(rows), 1):
            return  # a forward of other images, such as a reference image
        times = len(inputs) // max(len(rows), 1)
        copies = torch.full_like(rows, times)
        forwards.index_add_(0, rows, copies)  # a row may be there several times
        if inputs.requires_grad:

            def count(_: Tensor) -> None:
                backwards.index_add_(0, rows, copies)

            inputs.register_hook(count)


class PassTotals(PassCounter):
    """Counts the images that pass through some models, by their names.

    Args:
        names: name of each model, by what it and its copies have in common.

    Attributes:
        totals: numbers of images that passed forwards and backwards.
    """

    def __init__(self, names: Mapping[object, str]) -> None:
        super().__init__(0)
        self.totals = {name: [0, 0] for name in names.values()}
        self._totalled = names

    def watch(self, inputs: Tensor, owner: object, id: str) -> None:
        """Count one forward of `inputs`, and the backward that reaches them."""
        self.calls += 1
        if owner not in self._totalled:
            return
        total, count = self.totals[self._totalled[owner]], len(inputs)
        total[0] += count
        if inputs.requires_grad:

            def reached(_: Tensor) -> None:
                total[1] += count

            inputs.register_hook(reached)


_counters: ContextVar[tuple[PassCounter, ...]] = ContextVar("timmscope_pass_counters", default=())
_names: ContextVar[Mapping[object, str]] = ContextVar("timmscope_model_names", default={})  # noqa: B039


@contextlib.contextmanager
def counting_totals(names: Mapping[object, str]) -> Iterator[PassTotals]:
    """Count the passes of further models inside the context, under these names.

    Args:
        names: name of each model, by what it and its copies have in common.
    """
    token = _names.set({**_names.get(), **names})
    try:
        with counting(totals := PassTotals(names)):
            yield totals
    finally:
        _names.reset(token)


def counting_part(rows: Tensor) -> AbstractContextManager[None]:
    """Let the rows of `counting_only` be those of a part of the batch, inside the context.

    Args:
        rows: the rows of the batch that make the part.
    """
    counters = _counters.get()
    return counters[-1].part(rows) if counters else contextlib.nullcontext()


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
