"""Says which images a forward computes and which draw it is, for models with random defences.

A random defence draws from (seed, position of the image, number of the draw), so that a result does
not depend on how a batch is split, and no global generator is used. A call of a technique sets seed
and positions. Inside one call an image meets the same draw in each forward, so that a map or a
synthesis concerns one function; what needs several draws asks for them with `another_draw`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class ImageNumbers:
    """The numbers that the images of a call have in a larger set; none if the call is the whole."""

    known: tuple[int, ...] = ()

    def of(self, row: int) -> int:
        """Return the number of an image; rows beyond the images come after the last."""
        if not self.known:
            return row
        beyond = row - len(self.known) + 1
        return self.known[row] if beyond <= 0 else self.known[-1] + beyond


WHOLE = ImageNumbers()
"""The numbers of a call that is the whole set."""
_numbers: ContextVar[ImageNumbers] = ContextVar("timmscope_image_numbers", default=WHOLE)


@contextlib.contextmanager
def image_numbers(numbers: ImageNumbers) -> Iterator[None]:
    """Say which images of a larger set those of the next call are.

    Their random numbers are those of one call with the whole set. Calls that a technique makes
    meanwhile are about images of their own.
    """
    token = _numbers.set(numbers)
    try:
        yield
    finally:
        _numbers.reset(token)


def current_numbers() -> ImageNumbers:
    """Return the numbers that the images of the next call have in a larger set."""
    return _numbers.get()


def whole_calls() -> contextlib.AbstractContextManager[None]:
    """Let calls inside the context be about images of their own."""
    return image_numbers(WHOLE)


@dataclass(frozen=True)
class _Draws:
    """The running forwards: `positions` are None where each row is an image of its own."""

    seed: int = 0
    positions: tuple[int, ...] | None = None
    number: int = 0
    member: tuple[int, ...] = ()
    numbers: ImageNumbers = WHOLE

    def position(self, row: int) -> int:
        if not self.positions:
            return self.numbers.of(row)
        return self.positions[row % len(self.positions)]


_DEFAULT = _Draws()
_draws: ContextVar[_Draws] = ContextVar("timmscope_draws", default=_DEFAULT)


@contextlib.contextmanager
def _changed(draws: _Draws) -> Iterator[None]:
    token = _draws.set(draws)
    try:
        yield
    finally:
        _draws.reset(token)


def image_positions(
    positions: Iterable[int] | None, seed: int = 0
) -> contextlib.AbstractContextManager[None]:
    """Say where the images of the forwards inside the context are in the whole batch or data set.

    A forward of more rows is one of repeated images, as by `torch.cat([images] * times)`.

    Args:
        positions: a position for each image; None if each row of a forward is an image of its own.
        seed: seed of all draws.
    """
    numbers = current_numbers()
    where = None if positions is None else tuple(map(numbers.of, positions))
    return _changed(_Draws(seed, where, numbers=numbers))


def image_rows(rows: Iterable[int]) -> contextlib.AbstractContextManager[None]:
    """Say which rows of the current images the forwards inside the context compute.

    Techniques need it where they run some of the images, or changed copies of one image, through a
    model whose defence may be random.

    Args:
        rows: a row for each image of the forwards; one row if all of them are of one image.
    """
    current = _draws.get()
    return _changed(replace(current, positions=tuple(current.position(int(row)) for row in rows)))


def another_draw(number: int) -> contextlib.AbstractContextManager[None]:
    """Let random defences draw anew inside the context.

    Args:
        number: number of the draw; the same number is the same draw, and 0 the default.
    """
    return _changed(replace(_draws.get(), number=number))


def ensemble_member(number: int) -> contextlib.AbstractContextManager[None]:
    """Let the members of an ensemble draw independently of each other."""
    current = _draws.get()
    return _changed(replace(current, member=(*current.member, number)))


def defence_generators(count: int, place: int) -> list[torch.Generator]:
    """Return a CPU generator for each row of a forward.

    Args:
        count: number of rows.
        place: place of the defence among those of its model.
    """
    draws = _draws.get()
    where = f"{draws.seed} {draws.number} {draws.member} {place}"
    generators = []
    for row in range(count):
        digest = hashlib.sha256(f"{where} {draws.position(row)}".encode()).digest()
        seed = int.from_bytes(digest[:8], "little") >> 1
        generators.append(torch.Generator().manual_seed(seed))
    return generators
