"""One operation of a forward, as a rule sees it, and the few things that many rules do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from timmscope.receptive_fields.dependency_boxes import ACROSS, DOWN, NONE, PLANES, Shadows

Rule = Callable[["Op"], "Tensor | list[Tensor | None] | None"]
"""Shadows of the outputs: one for all, or one each. They may have sizes of 1 to be expanded."""


@dataclass(frozen=True)
class Op:
    """A call of an operation that has finished.

    Attributes:
        name: without namespace, overload and the underscore of in-place forms.
        function: to run it again, on planes of shadows.
        given: arguments by name.
        outputs: its tensors.
        shadows: of all tensors.
        spatial: whether what joins all positions counts for nothing but its common part.
        image: height and width.
    """

    name: str
    function: Callable[..., Any]
    given: dict[str, Any]
    outputs: list[Tensor]
    shadows: Shadows
    spatial: bool
    image: tuple[int, int]

    def shadow(self, name: str) -> Tensor | None:
        """The shadow of a tensor argument."""
        value = self.given.get(name)
        return self.shadows.of(value) if isinstance(value, Tensor) else None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Tensor arguments by name, those in lists too."""
        for name, value in self.given.items():
            if isinstance(value, Tensor):
                yield name, value
            elif isinstance(value, list | tuple):
                yield from ((name, item) for item in value if isinstance(item, Tensor))

    def dims(self, name: str = "dim") -> list[int]:
        """The dimensions that an argument names, from 0; all of the first tensor's without any."""
        count = next(tensor for _, tensor in self.tensors()).ndim
        value = self.given.get(name)
        if value is None or value == []:
            return list(range(count))
        return [d % max(count, 1) for d in ([value] if isinstance(value, int) else value)]


def union(*shadows: Tensor | None) -> Tensor | None:
    """The box of what depends on several things; sizes of 1 expand."""
    found = [shadow for shadow in shadows if shadow is not None]
    if not found:
        return None
    total = found[0]
    for shadow in found[1:]:
        total = torch.maximum(*_aligned(total, shadow))
    return total


def _aligned(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both with as many dimensions, new ones after the planes, as broadcasting wants it."""
    count = max(a.ndim, b.ndim)
    return lengthened(a, count), lengthened(b, count)


def lengthened(shadow: Tensor, count: int) -> Tensor:
    """The shadow with `count` dimensions, planes included."""
    missing = count - shadow.ndim
    return shadow.reshape(PLANES, *[1] * missing, *shadow.shape[1:])


def joined(op: Op, parts: list[tuple[Tensor | None, list[int]]]) -> Tensor | None:
    """What combines all elements along some dimensions, which become 1.

    Several parts are joined separately and then with one another, broadcast.

    In the spatial kind, an operation that joins all columns (or all rows) of what it is given, in
    each of its results, is global across (or down): only what all joined elements have in common
    counts there. Of elements that lie apart that is nothing at all.
    """
    known = [(shadow, dims) for shadow, dims in parts if shadow is not None]
    if not known:
        return None
    most = union(*[_over(torch.amax, shadow, dims) for shadow, dims in known])
    assert most is not None
    if not op.spatial:
        return most
    everything = torch.stack([shadow.flatten(1).amax(1) for shadow, _ in known]).amax(0)
    everywhere = (most == everything.view(-1, *[1] * (most.ndim - 1))).flatten(1)
    nowhere = (most == NONE).flatten(1)
    full = (everywhere | nowhere).all(1)
    least: Tensor | None = None
    for axis in (ACROSS, DOWN):
        if bool(full[list(axis[:2])].all()):
            if least is None:
                least = union(*[_over(torch.amin, shadow, dims) for shadow, dims in known])
                most = most.clone()
                assert least is not None
            most[list(axis)] = least[list(axis)]
    return most


def _over(function: Callable[..., Tensor], shadow: Tensor, dims: list[int]) -> Tensor:
    return function(shadow, [d + 1 for d in dims], keepdim=True) if dims else shadow


def everything(op: Op) -> Tensor | None:
    """The shadow of an operation that nothing is known of: all it was given, in every result."""
    parts = [
        shadow.flatten(1).amax(1)
        for _, tensor in op.tensors()
        if (shadow := op.shadows.of(tensor)) is not None and shadow.numel()
    ]
    return torch.stack(parts).amax(0) if parts else None
