"""Chooses the batch size of a pass by the free memory, for ``batch_size="auto"``.

On a CPU the size is computed: the bytes of tensors at the peak of a forward are proportional to the
number of images, and the largest batch that needs at most a quarter of the free memory is taken. On
an accelerator sizes are tried, since its allocator reports when one does not fit. The size becomes
part of the store, so that a resumed pass runs the same batches.
"""

from __future__ import annotations

import itertools
import logging
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from timmscope.free_memory import free_memory
from timmscope_registry.out_of_memory import is_out_of_memory

from .batch import reduce_batch
from .plan import Plan
from .preflight import format_bytes

if TYPE_CHECKING:
    from timmscope.models import HookedModel

log = logging.getLogger("timmscope.mining")

MAX_CPU, MAX_ACCELERATOR = 64, 256
"""Largest sizes: larger batches are no faster on a CPU, or on an accelerator, respectively."""
MEMORY_SHARE = 1 / 4
"""Share of the free memory that a forward may use."""
PROBE_IMAGES = 2
"""Number of images in the measured forward on a CPU."""


def choose_batch_size(model: HookedModel, plan: Plan) -> int:
    """Return the batch size for a pass, a power of two, and log it with the reason.

    On a CPU it is the largest size up to 64 whose forward, with all that the plan computes, holds
    at most a quarter of the free memory in tensors. On an accelerator it is the largest size up to
    256 that runs. It is at least 1 and at most the size of a shard, since no batch spans two.

    Args:
        model: the model.
        plan: what to compute; its batch size is ignored.
    """
    on_cpu = model.device.type == "cpu"
    limit = _floor_power_of_two(min(MAX_CPU if on_cpu else MAX_ACCELERATOR, plan.shard_size))
    if on_cpu:
        per_image = forward_bytes(model, plan, PROBE_IMAGES) / PROBE_IMAGES
        allowed = free_memory() * MEMORY_SHARE
        size = min(limit, _floor_power_of_two(max(1, int(allowed / per_image))))
        log.info(
            "batch size %d: a forward takes %s (%s per image) of the %s allowed, a quarter of the "
            "free memory; the largest size on this CPU is %d",
            *(size, format_bytes(per_image * size), format_bytes(per_image)),
            *(format_bytes(allowed), limit),
        )
        return size
    size = limit
    while size > 1 and not _fits(model, plan, size):
        size //= 2
    log.info(
        "batch size %d: the largest power of two up to %d that %s has memory for",
        *(size, limit, model.device),
    )
    return size


def forward_bytes(model: HookedModel, plan: Plan, count: int) -> int:
    """Return the bytes of all tensors alive at the peak of a forward of `count` images.

    The model's weights and the memory that kernels use internally are not counted.
    """
    module = (plan.folded or model).module
    live = LiveBytes(itertools.chain(module.parameters(), module.buffers()))
    with live:
        reduce_batch(plan.folded or model, plan, _grey(model, count))
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are created inside the context and still alive.

    Args:
        known: tensors that exist already, whose storages do not count.

    Attributes:
        now: bytes alive now.
        peak: largest number of bytes that were alive at once.
    """

    def __init__(self, known: Any = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if not size or address in self._known:  # a view, or computed in place
            return
        self._known.add(address)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.now -= size


def _fits(model: HookedModel, plan: Plan, count: int) -> bool:
    """Return whether the accelerator has memory for a forward of `count` images."""
    try:
        reduce_batch(plan.folded or model, plan, _grey(model, count))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _grey(model: HookedModel, count: int) -> Tensor:
    return torch.full((count, *model.input_size), 0.5)


def _floor_power_of_two(number: int) -> int:
    """Return the largest power of two that is at most `number`."""
    return 1 << (number.bit_length() - 1)
