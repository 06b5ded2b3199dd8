"""What every call of a technique does around its one method: seed, restore, batch.

Randomness is drawn an image at a time from (seed, position of the image in the whole batch), so a
result does not depend on how the batch was split.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from timmscope.models import HookedModel
from timmscope_registry import ParameterError

MEMORY_BUDGET_BYTES = 1 << 30
"""Activations that one chunk of a batch may keep alive, by default."""
FORWARD_BUDGET_BYTES = 1 << 29
"""What one forward without a graph may take beside the weights, by default."""
MOST_AT_ONCE = {"cpu": 8}
"""Images a forward beyond which a processor's caches overflow, and it slows down."""


@dataclass(frozen=True)
class Session:
    """The running call: its seed, where in the whole batch the images of the chunk are, and how
    many images a pass the caller asked for."""

    seed: int
    positions: tuple[int, ...] | None = None
    batch_size: int | None = None


_NONE = Session(seed=0)
_session: ContextVar[Session] = ContextVar("timmscope_session", default=_NONE)


@contextlib.contextmanager
def session(
    seed: int, positions: Iterable[int] | None = None, batch_size: int | None = None
) -> Iterator[None]:
    """Seed torch, NumPy and Python for the duration; afterwards they and grad mode are as before.

    Autograd is on inside, whatever the caller's mode: `no_grad` or `inference_mode`.

    Raises:
        ParameterError: the seed is no int, or one of more than 31 bits.
    """
    if not isinstance(seed, int) or not -(2**31) <= seed < 2**31:
        raise ParameterError(
            f"seed is {seed!r}: expected an int of at most 31 bits", parameter="seed"
        )
    where = tuple(positions) if positions is not None else None
    token = _session.set(Session(seed, where, batch_size))
    grad = torch.is_grad_enabled()
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.random.fork_rng(devices=devices),
        ):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        _session.reset(token)
        torch.set_grad_enabled(grad)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def usable(tensor: Tensor) -> Tensor:
    """The same values as a tensor that autograd accepts; one of `inference_mode` is copied."""
    return tensor.clone() if tensor.is_inference() else tensor


def image_generators(count: int) -> list[torch.Generator]:
    """A CPU generator for each image of the current chunk, seeded by (seed, its position)."""
    current = _session.get()
    positions = current.positions if current.positions is not None else range(count)
    return [
        torch.Generator().manual_seed(current.seed * 1_000_003 + position)
        for position in positions[:count]
    ]


def noise_like(
    images: Tensor,
    distribution: Literal["uniform", "normal"] = "normal",
    generators: list[torch.Generator] | None = None,
) -> Tensor:
    """Noise of the images' shape, the same for an image however the batch is split.

    Args:
        images: `(B, …)`.
        distribution: `uniform` on [0, 1), or standard `normal`.
        generators: reuse these to go on drawing; by default fresh ones.
    """
    draw = torch.rand if distribution == "uniform" else torch.randn
    generators = generators if generators is not None else image_generators(len(images))
    rows = [draw(images.shape[1:], generator=generator) for generator in generators]
    return torch.stack(rows).to(images)


def chunk_size(model: HookedModel, images: Tensor, asked: int | None) -> int:
    """How many images may go through the model with a graph at once.

    By default as many as keep the layers' activations within `MEMORY_BUDGET_BYTES`.

    Raises:
        ParameterError: fewer than one were asked for.
    """
    if asked is not None:
        if not isinstance(asked, int) or asked < 1:
            raise ParameterError(
                f"batch_size is {asked!r}: expected an int, 1 or more", parameter="batch_size"
            )
        return asked
    cells = model.input_size[1] * model.input_size[2]
    scale = images.shape[-1] * images.shape[-2] / cells
    values = sum(_numel(layer.shape) for layer in model.layers.values())
    return max(1, int(MEMORY_BUDGET_BYTES / max(values * 4 * scale, 1)))


def images_per_pass(model: HookedModel, images: Tensor) -> int:
    """How many images a technique may send through the model with a graph at once.

    For techniques that look at many variants of an image: what the caller asked for as
    `batch_size`, or what keeps the layers' activations within `MEMORY_BUDGET_BYTES`.

    Args:
        model: the model.
        images: `(B, 3, H, W)`; their size counts, their number does not.
    """
    return chunk_size(model, images, _session.get().batch_size)


def images_per_forward(model: HookedModel, images: Tensor) -> int:
    """How many images of this size may go through the model at once without a graph.

    As many as the running call was asked for with `batch_size`; by default what keeps a forward
    within `FORWARD_BUDGET_BYTES`, on a processor at most 8. Without a graph only a few tensors of
    the size of the largest layer are alive together.
    """
    asked = _session.get().batch_size
    if asked is not None:
        return asked
    scale = images.shape[-1] * images.shape[-2] / (model.input_size[1] * model.input_size[2])
    largest = max((_numel(layer.shape) for layer in model.layers.values()), default=0)
    alive = _ALIVE * largest * scale + 3 * images[0].numel()
    fits = int(FORWARD_BUDGET_BYTES / (alive * 4))
    return max(1, min(fits, MOST_AT_ONCE.get(model.device.type, fits)))


_ALIVE = 5
"""Tensors as large as the largest layer that a forward holds at its peak: input, output, skip
connection, and the copies that convolution kernels make."""


def _numel(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
