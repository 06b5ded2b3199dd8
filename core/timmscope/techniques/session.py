"""Prepares a technique's call: positions for random numbers, grad mode and sizes of chunks.

Random numbers are drawn per image from (seed, position of the image in the whole batch), so that a
result does not depend on how the batch is split. The process's own random generators are neither
read nor seeded, because other threads draw from them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from timmscope.draws import WHOLE, ImageNumbers, current_numbers, image_positions, whole_calls
from timmscope.models import HookedModel
from timmscope_registry import ParameterError
from timmscope_registry.hooks import OwnGenerators

MEMORY_BUDGET_BYTES = 1 << 30
"""Default memory for the activations of one chunk of a batch with its graph."""
FORWARD_BUDGET_BYTES = 1 << 29
"""Default memory for one forward pass without a graph, besides the weights."""
MAX_IMAGES_PER_FORWARD = {"cpu": 8}
"""Largest number of images per forward pass; more overflow a CPU's caches and slow it down."""
_LIVE_TENSORS = 5
"""Tensors as large as the largest layer that a forward pass holds at its peak: input, output, skip
connection, and the copies that convolution kernels make."""


@dataclass(frozen=True)
class Session:
    """The running call.

    Attributes:
        seed: seed of the call.
        positions: positions of the chunk's images in the whole batch.
        batch_size: images per pass that the caller asked for.
        numbers: numbers of the call's images in a larger set.
    """

    seed: int
    positions: tuple[int, ...] | None = None
    batch_size: int | None = None
    numbers: ImageNumbers = WHOLE


_NONE = Session(seed=0)
_session: ContextVar[Session] = ContextVar("timmscope_session", default=_NONE)


@contextlib.contextmanager
def session(
    seed: int, positions: Iterable[int] | None = None, batch_size: int | None = None
) -> Iterator[None]:
    """Say where the images are in the whole batch, and turn autograd on inside the context.

    Autograd is on inside, even if the caller uses `no_grad` or `inference_mode`.

    Args:
        seed: of `image_generators`.
        positions: of the chunk's images in the whole batch.
        batch_size: images per pass that the caller asked for.

    Raises:
        ParameterError: the seed is not an int, or has more than 31 bits.
    """
    check_seed(seed)
    where = tuple(positions) if positions is not None else None
    token = _session.set(Session(seed, where, batch_size, current_numbers()))
    grad = torch.is_grad_enabled()
    try:
        with (
            image_positions(where, seed),
            whole_calls(),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            yield
    finally:
        _session.reset(token)
        torch.set_grad_enabled(grad)


def session_part(rows: Sequence[int]) -> contextlib.AbstractContextManager[None]:
    """Say that the images inside the context are these rows of the current chunk."""
    current = _session.get()
    known = current.positions
    places = rows if known is None else [known[row] for row in rows]
    return session(current.seed, map(current.numbers.of, places), current.batch_size)


@contextlib.contextmanager
def own_numbers(model: HookedModel | None, seed: int) -> Iterator[None]:
    """Let a model that is itself random, such as one with dropout in eval mode, draw from a seed.

    So do random defences. Nothing changes for other models.

    Raises:
        ParameterError: the seed is no int, or one of more than 31 bits.
        UnsupportedModel: the model cannot run.
    """
    check_seed(seed)
    with (
        image_positions(None, seed),
        OwnGenerators(seed)
        if model is not None and model.hooks.is_random
        else contextlib.nullcontext(),
    ):
        yield


def check_seed(seed: int) -> None:
    """Refuse a seed that is no int, or one of more than 31 bits.

    Raises:
        ParameterError: it is.
    """
    if not isinstance(seed, int) or not -(2**31) <= seed < 2**31:
        raise ParameterError(
            f"seed is {seed!r}: expected an int of at most 31 bits", parameter="seed"
        )


def for_autograd(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd accepts: a copy if it was made in `inference_mode`."""
    return tensor.clone() if tensor.is_inference() else tensor


def image_generators(count: int) -> list[torch.Generator]:
    """Return a CPU generator per image of the current chunk, seeded by (seed, image position)."""
    current = _session.get()
    positions = current.positions if current.positions is not None else range(count)
    return [
        torch.Generator().manual_seed(current.seed * 1_000_003 + current.numbers.of(position))
        for position in positions[:count]
    ]


def noise_like(
    images: Tensor,
    distribution: Literal["uniform", "normal"] = "normal",
    generators: list[torch.Generator] | None = None,
) -> Tensor:
    """Return noise of the images' shape that does not depend on how the batch is split.

    Args:
        images: `(B, …)`.
        distribution: `uniform` on [0, 1), or standard `normal`.
        generators: generators of an earlier call, to draw further numbers; by default new ones.
    """
    draw = torch.rand if distribution == "uniform" else torch.randn
    generators = generators if generators is not None else image_generators(len(images))
    rows = [draw(images.shape[1:], generator=generator) for generator in generators]
    return torch.stack(rows).to(images)


def chunk_size(model: HookedModel, images: Tensor, asked: int | None) -> int:
    """Return how many images may go through the model with a graph at once.

    By default as many as keep the layers' activations within `MEMORY_BUDGET_BYTES`.

    Raises:
        ParameterError: `asked` is not an int, or is less than 1.
    """
    if asked is not None:
        if not isinstance(asked, int) or asked < 1:
            raise ParameterError(
                f"batch_size is {asked!r}: expected an int, 1 or more", parameter="batch_size"
            )
        return asked
    values = sum(math.prod(layer.shape) for layer in model.layers.values())
    return max(1, int(MEMORY_BUDGET_BYTES / max(values * 4 * _scale(model, images), 1)))


def images_per_pass(model: HookedModel, images: Tensor) -> int:
    """Return how many images a technique may send through the model with a graph at once.

    Techniques that use many variants of an image call it. The number is the caller's `batch_size`,
    or as many as keep the layers' activations within `MEMORY_BUDGET_BYTES`.

    Args:
        model: the model.
        images: `(B, 3, H, W)`, of which only the size matters.
    """
    return chunk_size(model, images, _session.get().batch_size)


def images_per_forward(model: HookedModel, images: Tensor) -> int:
    """Return how many images of this size may go through the model at once without a graph.

    The number is the running call's `batch_size`; by default as many as keep a forward pass within
    `FORWARD_BUDGET_BYTES`, on a CPU at most 8. Without a graph only a few tensors of the size of
    the largest layer exist at the same time.
    """
    asked = _session.get().batch_size
    if asked is not None:
        return asked
    largest = max((math.prod(layer.shape) for layer in model.layers.values()), default=0)
    values = _LIVE_TENSORS * largest * _scale(model, images) + 3 * images[0].numel()
    fits = int(FORWARD_BUDGET_BYTES / (values * 4))
    return max(1, min(fits, MAX_IMAGES_PER_FORWARD.get(model.device.type, fits)))


def _scale(model: HookedModel, images: Tensor) -> float:
    """Return the images' area relative to the model's input size."""
    return images.shape[-1] * images.shape[-2] / (model.input_size[1] * model.input_size[2])
