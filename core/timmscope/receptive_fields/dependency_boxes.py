"""What every number of a forward depends on: a box of pixels beside each element of each tensor.

Tensors have shadows. A shadow holds, for each element, eight small integers: the outermost columns
and rows of the image that the element can depend on, once exactly and once by arithmetic, where
padding counts as if the image went on. Left and upper edges are stored with their sign changed, so
that the box of whatever combines two elements is the larger of each of their eight numbers.

A shadow lies over the tensor's *storage*, not the tensor: views, slices and writes through them
then need no bookkeeping at all.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

PLANES = 8
"""-left, right, -upper, lower edge; the same by arithmetic."""
EXACT, ARITHMETIC = slice(0, 4), slice(4, 8)
ACROSS, DOWN = (0, 1, 4, 5), (2, 3, 6, 7)
"""Planes of columns, and of rows."""
NONE = -(2**15)
"""In every plane: depends on no pixel."""
FURTHEST = 2**15 - 1
"""Coordinates end here, on either side."""

_Kept = dict[int, tuple[StorageWeakRef, int, Tensor]]
"""By address of the storage: whether it lives, bytes an element, its shadow."""


class Shadows:
    """The shadows of the tensors that are alive. Memory: 16 bytes an element."""

    def __init__(self) -> None:
        self._kept: _Kept = {}
        self._masks: _Kept = {}

    def of(self, tensor: Tensor) -> Tensor | None:
        """Shadow `(8, *shape)` int16 of a tensor, a view; None if it depends on no pixel."""
        found = self._find(self._kept, tensor)
        if found is None:
            return None
        return found.as_strided(
            (PLANES, *tensor.shape),
            (found.shape[1], *tensor.stride()),
            tensor.storage_offset(),
        )

    def put(self, tensor: Tensor, shadow: Tensor | None) -> None:
        """Give a tensor a shadow `(8, *shape)`, or take it away."""
        current = self.of(tensor)
        if current is None:
            if shadow is None:
                return
            count = _elements(tensor)
            whole = tensor.numel() == count
            blank = torch.empty((PLANES, count), dtype=torch.int16, device=tensor.device)
            if not whole:
                blank.fill_(NONE)
            self._keep(self._kept, tensor, blank)
            current = self.of(tensor)
            assert current is not None
        if shadow is None:
            current.fill_(NONE)
        else:
            current.copy_(shadow)

    def mask(self, tensor: Tensor, hidden: Tensor) -> None:
        """Note which elements of a tensor an attention mask hides."""
        flags = torch.zeros((1, _elements(tensor)), dtype=torch.bool, device=tensor.device)
        flags[0].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).copy_(hidden)
        self._keep(self._masks, tensor, flags)

    def masked(self, tensor: Tensor) -> Tensor | None:
        """Elements hidden by an attention mask, bool in the tensor's shape; None without one."""
        found = self._find(self._masks, tensor)
        if found is None:
            return None
        return found[0].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def _find(self, kept: _Kept, tensor: Tensor) -> Tensor | None:
        entry = kept.get(tensor.untyped_storage()._cdata)
        if entry is None:
            return None
        _, size, shadow = entry
        if tensor.element_size() != size:  # a real view of complex numbers, or the reverse
            shadow = _resized(shadow, size, tensor.element_size())
            self._keep(kept, tensor, shadow)
        return shadow

    def _keep(self, kept: _Kept, tensor: Tensor, shadow: Tensor) -> None:
        # The weak reference keeps the address from being used again while the entry lives.
        storage = tensor.untyped_storage()
        kept[storage._cdata] = (StorageWeakRef(storage), tensor.element_size(), shadow)
        for entries in (self._kept, self._masks):
            for key in [key for key, entry in entries.items() if entry[0].expired()]:
                del entries[key]


def _elements(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def _resized(shadow: Tensor, size: int, wanted: int) -> Tensor:
    if wanted < size:
        return shadow.repeat_interleave(size // wanted, 1)
    return shadow.view(len(shadow), -1, wanted // size).amax(2)
