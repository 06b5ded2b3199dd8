"""`DependencyBoxes` keeps, for each element of each tensor, the box of pixels it depends on.

The boxes of a tensor are eight small integers for each element: the outermost columns and rows of
the image that the element can depend on, once exactly and once by arithmetic, which treats padding
as if the image continued there. Left and upper edges are stored with the opposite sign, so that the
box of a combination of elements is the elementwise maximum of their boxes.

The boxes are kept for a tensor's *storage*, not for the tensor, so that views, slices and writes
through them need no further work.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

PLANES = 8
"""-left, right, -upper, lower edge; then the same by arithmetic."""
EXACT, ARITHMETIC = slice(0, 4), slice(4, 8)
COLUMN_PLANES, ROW_PLANES = (0, 1, 4, 5), (2, 3, 6, 7)
"""Planes of left and right edges, and of upper and lower ones."""
NO_PIXEL = -(2**15)
"""Value in every plane of an element that depends on no pixel."""
MAX_COORDINATE = 2**15 - 1
"""Largest coordinate; larger ones are clipped to it."""

_Table = dict[int, tuple[StorageWeakRef, int, Tensor]]
"""By address of a storage: a weak reference to it, bytes per element, values for each element."""


class DependencyBoxes:
    """The boxes of all tensors that are alive; they take 16 bytes per element."""

    def __init__(self) -> None:
        self._boxes: _Table = {}
        self._masks: _Table = {}

    def of(self, tensor: Tensor) -> Tensor | None:
        """Boxes `(8, *shape)` int16 of a tensor, as a view; None if it depends on no pixel."""
        boxes = self._find(self._boxes, tensor)
        if boxes is None:
            return None
        return boxes.as_strided(
            (PLANES, *tensor.shape),
            (boxes.shape[1], *tensor.stride()),
            tensor.storage_offset(),
        )

    def set(self, tensor: Tensor, boxes: Tensor | None) -> None:
        """Set the boxes `(8, *shape)` of a tensor; None if it depends on no pixel."""
        current = self.of(tensor)
        if current is None:
            if boxes is None:
                return
            count = _elements(tensor)
            blank = torch.empty((PLANES, count), dtype=torch.int16, device=tensor.device)
            if tensor.numel() != count:  # the tensor is only a part of its storage
                blank.fill_(NO_PIXEL)
            self._keep(self._boxes, tensor, blank)
            current = self.of(tensor)
            assert current is not None
        if boxes is None:
            current.fill_(NO_PIXEL)
        else:
            current.copy_(boxes)

    def set_mask(self, tensor: Tensor, hidden: Tensor) -> None:
        """Record which elements of a tensor an attention mask hides."""
        flags = torch.zeros((1, _elements(tensor)), dtype=torch.bool, device=tensor.device)
        flags[0].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).copy_(hidden)
        self._keep(self._masks, tensor, flags)

    def mask_of(self, tensor: Tensor) -> Tensor | None:
        """Elements that an attention mask hides, bool in the tensor's shape; None without one."""
        flags = self._find(self._masks, tensor)
        if flags is None:
            return None
        return flags[0].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def _find(self, table: _Table, tensor: Tensor) -> Tensor | None:
        entry = table.get(tensor.untyped_storage()._cdata)
        if entry is None:
            return None
        _, size, values = entry
        if tensor.element_size() != size:  # a real view of complex numbers, or the reverse
            values = _resized(values, size, tensor.element_size())
            self._keep(table, tensor, values)
        return values

    def _keep(self, table: _Table, tensor: Tensor, values: Tensor) -> None:
        # The weak reference keeps the address from being reused while the entry exists.
        storage = tensor.untyped_storage()
        table[storage._cdata] = (StorageWeakRef(storage), tensor.element_size(), values)
        for entries in (self._boxes, self._masks):
            for key in [key for key, entry in entries.items() if entry[0].expired()]:
                del entries[key]


def _elements(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def _resized(values: Tensor, size: int, new_size: int) -> Tensor:
    """Adapt the values to elements of another size in bytes."""
    if new_size < size:
        return values.repeat_interleave(size // new_size, 1)
    return values.view(len(values), -1, new_size // size).amax(2)
