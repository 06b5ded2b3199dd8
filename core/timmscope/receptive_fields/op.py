"""`Op` describes one finished operation of a forward to a rule; helpers that many rules share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from timmscope.receptive_fields.dependency_boxes import (
    COLUMN_PLANES,
    NO_PIXEL,
    PLANES,
    ROW_PLANES,
    DependencyBoxes,
)

Rule = Callable[["Op"], "Tensor | list[Tensor | None] | None"]
"""Returns the boxes of the outputs: one tensor for all of them, or one each.

Dimensions of size 1 are expanded to the output's shape.
"""


@dataclass(frozen=True)
class Op:
    """One call of an operation that has finished.

    Attributes:
        name: name without namespace, overload and the underscore of in-place forms.
        function: the operation, so that a rule can apply it to planes of boxes.
        arguments: the arguments by name.
        outputs: the output tensors.
        dependencies: the boxes of all tensors.
        spatial: whether an operation that combines all positions passes on only what they have in
            common.
        image: height and width of the image in pixels.
    """

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]
    outputs: list[Tensor]
    dependencies: DependencyBoxes
    spatial: bool
    image: tuple[int, int]

    def boxes(self, name: str) -> Tensor | None:
        """Boxes of a tensor argument."""
        value = self.arguments.get(name)
        return self.dependencies.of(value) if isinstance(value, Tensor) else None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Tensor arguments with their names, also those inside lists."""
        for name, value in self.arguments.items():
            if isinstance(value, Tensor):
                yield name, value
            elif isinstance(value, list | tuple):
                yield from ((name, item) for item in value if isinstance(item, Tensor))

    def dims(self, name: str = "dim") -> list[int]:
        """Dimensions named by an argument, counted from 0; by default all of the first tensor."""
        count = next(tensor for _, tensor in self.tensors()).ndim
        value = self.arguments.get(name)
        if value is None or value == []:
            return list(range(count))
        return [d % max(count, 1) for d in ([value] if isinstance(value, int) else value)]


def union(*boxes: Tensor | None) -> Tensor | None:
    """Boxes of a result that depends on several tensors; dimensions of size 1 are expanded."""
    known = [each for each in boxes if each is not None]
    if not known:
        return None
    count = max(each.ndim for each in known)
    total = with_ndim(known[0], count)
    for each in known[1:]:
        total = torch.maximum(total, with_ndim(each, count))
    return total


def with_ndim(boxes: Tensor, count: int) -> Tensor:
    """Reshape boxes to `count` dimensions including the planes, as broadcasting does."""
    missing = count - boxes.ndim
    return boxes.reshape(PLANES, *[1] * missing, *boxes.shape[1:])


def combine(op: Op, parts: list[tuple[Tensor | None, list[int]]]) -> Tensor | None:
    """Boxes of results that combine all elements along some dimensions, which become 1.

    Each part (boxes and dimensions) is combined, then the parts with one another, broadcast.

    In the spatial kind, an operation whose every result combines all columns (or all rows) of its
    input is global across (or down): in that direction only what all combined elements have in
    common counts. Elements that are far apart have nothing in common.
    """
    known = [(boxes, dims) for boxes, dims in parts if boxes is not None]
    if not known:
        return None
    most = union(*[_over(torch.amax, boxes, dims) for boxes, dims in known])
    assert most is not None
    if not op.spatial:
        return most
    whole = torch.stack([boxes.flatten(1).amax(1) for boxes, _ in known]).amax(0)
    everywhere = (most == whole.view(-1, *[1] * (most.ndim - 1))).flatten(1)
    nowhere = (most == NO_PIXEL).flatten(1)
    full = (everywhere | nowhere).all(1)
    least: Tensor | None = None
    for axis in (COLUMN_PLANES, ROW_PLANES):
        if bool(full[list(axis[:2])].all()):
            if least is None:
                least = union(*[_over(torch.amin, boxes, dims) for boxes, dims in known])
                most = most.clone()
                assert least is not None
            most[list(axis)] = least[list(axis)]
    return most


def _over(function: Callable[..., Tensor], boxes: Tensor, dims: list[int]) -> Tensor:
    return function(boxes, [d + 1 for d in dims], keepdim=True) if dims else boxes


def all_inputs(op: Op) -> Tensor | None:
    """Boxes of an operation without a rule: every result depends on all its inputs."""
    parts = [
        boxes.flatten(1).amax(1)
        for _, tensor in op.tensors()
        if (boxes := op.dependencies.of(tensor)) is not None and boxes.numel()
    ]
    return torch.stack(parts).amax(0) if parts else None
