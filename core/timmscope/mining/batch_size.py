"""Chooses how many images go through the model at once, for a pass that leaves it open.

On a processor the choice follows from arithmetic: the tensors that one small forward holds at its
peak grow in proportion to the images, and the largest batch is taken that needs no more than a
share of the free memory. On an accelerator batches are tried, since its allocator says when one
does not fit. The number becomes part of the store, so that a resumed pass runs the same batches.
"""

from __future__ import annotations

import itertools
import logging
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .batch import reduce_batch
from .plan import Plan
from .preflight import amount

if TYPE_CHECKING:
    from timmscope.models import HookedModel

log = logging.getLogger("timmscope.mining")

MOST_CPU, MOST_ACCELERATOR = 64, 256
"""Largest batches tried: beyond them a processor's caches, or an accelerator's cores, gain none."""
SHARE = 4
"""One part in so many of the free memory may go to a forward."""
UNKNOWN_MEMORY = 8 << 30
"""Bytes taken to be free where the system does not tell."""
PROBE = 2
"""Images in the probing forward on a processor."""


def choose_batch_size(model: HookedModel, plan: Plan) -> int:
    """Find the batch size for a pass, a power of two, and log it with the reason.

    On a processor: the largest up to 64 whose forward, with all that the plan computes, holds at
    most a quarter of the free memory in tensors. On an accelerator: the largest up to 256 that
    runs. No larger than a shard, which a batch never straddles. At least 1.

    Args:
        model: the model.
        plan: what to compute; its batch size does not count.
    """
    on_cpu = model.device.type == "cpu"
    most = _power_of_two(min(MOST_CPU if on_cpu else MOST_ACCELERATOR, plan.shard_size))
    if on_cpu:
        each = forward_bytes(model, plan, PROBE) / PROBE
        allowed = free_memory() / SHARE
        size = min(most, _power_of_two(max(1, int(allowed / each))))
        log.info(
            "batch size %d: takes %s in a forward, %s an image, of the %s allowed (a quarter of "
            "the free memory); %d is the most on a processor",
            *(size, amount(each * size), amount(each), amount(allowed), most),
        )
        return size
    size = most
    while size > 1 and not _runs(model, plan, size):
        size //= 2
    log.info(
        "batch size %d: the largest power of two up to %d that %s has memory for",
        *(size, most, model.device),
    )
    return size


def forward_bytes(model: HookedModel, plan: Plan, count: int) -> int:
    """Bytes of all tensors alive at once at the peak of a forward of `count` images.

    The model's weights are left out, and so is what kernels use inside themselves.
    """
    module = (plan.folded or model).module
    alive = Alive(itertools.chain(module.parameters(), module.buffers()))
    with alive:
        reduce_batch(plan.folded or model, plan, _grey(model, count))
    return alive.peak


def free_memory() -> int:
    """Bytes of main memory that this process may still take, by the system and its container."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = {
            name: int(rest.split()[0]) for name, _, rest in (s.partition(":") for s in lines)
        }
        free = kilobytes["MemAvailable"] << 10
    except (OSError, KeyError, ValueError, IndexError):
        try:  # elsewhere: half of what the machine has
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        except (AttributeError, OSError, ValueError):
            return UNKNOWN_MEMORY
    try:  # a container's own limit
        limit, used = (
            int(Path("/sys/fs/cgroup", name).read_text())
            for name in ("memory.max", "memory.current")
        )
    except (OSError, ValueError):
        return free
    return max(0, min(free, limit - used))


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that come into being inside the context and are alive.

    Attributes:
        now: bytes alive.
        peak: most bytes that were alive at once.
    """

    def __init__(self, known: Any = ()) -> None:
        """Leave out the storages of tensors that are there already."""
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
        place, size = storage.data_ptr(), storage.nbytes()
        if not size or place in self._known:  # a view, or computed in place
            return
        self._known.add(place)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, place, size)

    def _forget(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size


def _runs(model: HookedModel, plan: Plan, count: int) -> bool:
    """Whether the accelerator has memory for a forward of so many images."""
    try:
        reduce_batch(plan.folded or model, plan, _grey(model, count))
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        return False
    return True


def _grey(model: HookedModel, count: int) -> Tensor:
    return torch.full((count, *model.input_size), 0.5)


def _power_of_two(number: int) -> int:
    """The largest that is not above the number."""
    return 1 << (number.bit_length() - 1)
