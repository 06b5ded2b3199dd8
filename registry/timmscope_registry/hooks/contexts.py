"""What the open contexts want at each hook point: values kept, read, edited, or the graph cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from timmscope_registry.errors import LayerNotFound, ParameterError, UnsupportedModel
from timmscope_registry.hooks.points import Point

Edit = Callable[[Tensor], Tensor]
Look = Callable[[Tensor], None]


class Recording(Mapping[str, Tensor]):
    """Activations of the latest forward by the names asked for, attached to its autograd graph.

    A new forward inside the same context replaces everything; `gradients` fills while a backward
    pass (`backward` or `torch.autograd.grad`) runs, and the latest pass wins.
    """

    def __init__(self, points: tuple[Point, ...], *, gradients: bool, until_last: bool) -> None:
        self.points = points
        self.until_last = until_last
        self.gradients: dict[str, Tensor] = {}
        self._wants_gradients = gradients
        self._values: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """Return the activation of that hook point; `LayerNotFound` if there is none."""
        if name in self._values:
            return self._values[name]
        asked = tuple(point.name for point in self.points)
        if name in asked:
            raise LayerNotFound(
                f"{name} was not recorded: run the model inside the context first", name=name
            )
        raise LayerNotFound(
            f"{name} is not being recorded; recorded are: {', '.join(asked)}",
            name=name,
            nearest=asked,
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, name: str, default: Tensor | None = None) -> Tensor | None:  # type: ignore[override]
        """Return the activation of that hook point, or `default`."""
        return self._values.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def begin(self) -> None:
        """Forget the forward before."""
        self._values = {}
        self.gradients = {}

    def take(self, point: Point, value: Tensor) -> None:
        """Keep the output of a hook point."""
        self._values[point.name] = value
        if not self._wants_gradients:
            return
        if not value.requires_grad:
            why = (
                "nothing before it requires grad; call images.requires_grad_() first, or start "
                "the graph there with cut(...)"
                if torch.is_grad_enabled()
                else "autograd is off (torch.no_grad, or a cut at a later point)"
            )
            raise ParameterError(f"no gradient can reach {point.name}: {why}")
        gradients, name = self.gradients, point.name  # no reference to self: that would be a cycle

        def keep(gradient: Tensor) -> None:
            gradients[name] = gradient

        value.register_hook(keep)

    @property
    def complete(self) -> bool:
        """Whether every point has been recorded in this forward."""
        return all(point.name in self._values for point in self.points)


@dataclass
class Cut:
    """The place where the autograd graph starts.

    Attributes:
        point: the hook point.
        leaf: its output in the latest forward, a leaf that requires grad; None before any.
    """

    point: Point
    _leaf: Tensor | None = None

    @property
    def leaf(self) -> Tensor:
        """The point's output in the latest forward, detached from all before it."""
        if self._leaf is None:
            raise UnsupportedModel(
                f"the forward has not reached {self.point.name}; run the model inside the context"
            )
        return self._leaf

    @property
    def reached(self) -> bool:
        """Whether this forward has come to the point."""
        return self._leaf is not None

    def begin(self) -> None:
        """Forget the forward before."""
        self._leaf = None

    def start(self, value: Tensor) -> Tensor:
        """Make a leaf of the point's output and turn autograd on for the rest."""
        torch.set_grad_enabled(True)
        leaf = value.detach()
        if leaf.is_inference():
            leaf = leaf.clone()
        self._leaf = leaf.requires_grad_()
        return self._leaf


@dataclass
class Edits:
    """Functions applied to activations in flight."""

    functions: dict[Point, Edit]
    fired: set[Point] = field(default_factory=set)

    def begin(self) -> None:
        """Forget the forward before."""
        self.fired.clear()

    def apply(self, point: Point, value: Tensor) -> Tensor:
        """Return what the model goes on with."""
        self.fired.add(point)
        edited = self.functions[point](value)
        if not isinstance(edited, Tensor) or edited.shape != value.shape:
            got = tuple(edited.shape) if isinstance(edited, Tensor) else type(edited).__name__
            raise ParameterError(
                f"the edit of {point.name} must return a tensor of shape {tuple(value.shape)}, "
                f"and returned {got}"
            )
        return edited


@dataclass
class Watch:
    """Functions that read activations in flight, while they are fresh in the processor's cache."""

    functions: dict[Point, Look]
    until_last: bool
    seen: set[Point] = field(default_factory=set)

    def begin(self) -> None:
        """Forget the forward before."""
        self.seen.clear()

    def show(self, point: Point, value: Tensor) -> None:
        """Call the function of a hook point."""
        self.functions[point](value)
        self.seen.add(point)

    @property
    def complete(self) -> bool:
        """Whether every point has been seen in this forward."""
        return len(self.seen) == len(self.functions)


@dataclass
class InputWatch:
    """Functions that read what modules are given, before the modules may overwrite it."""

    functions: dict[Point, Look]

    def begin(self) -> None:
        """Nothing is remembered between forwards."""
