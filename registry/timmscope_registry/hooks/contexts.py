"""Contexts that act at hook points: record a value, read it, edit it, or cut the graph there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from timmscope_registry.errors import LayerNotFound, ParameterError, UnsupportedModel
from timmscope_registry.hooks.points import Point

Edit = Callable[[Tensor], Tensor]
Reader = Callable[[Tensor], None]


class Recording(Mapping[str, Tensor]):
    """Activations of the latest forward, by the requested names, attached to its autograd graph.

    Every forward inside the context replaces them.

    Attributes:
        gradients: by name, the gradient at each point in the latest backward pass (`backward` or
            `torch.autograd.grad`); filled only if the recording was opened with `gradients=True`.
    """

    def __init__(self, points: tuple[Point, ...], *, gradients: bool, until_last: bool) -> None:
        self.points = points
        self.until_last = until_last
        self.gradients: dict[str, Tensor] = {}
        self._wants_gradients = gradients
        self._values: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """Return the activation of that hook point; raises `LayerNotFound` if there is none."""
        if name in self._values:
            return self._values[name]
        requested = tuple(point.name for point in self.points)
        if name in requested:
            raise LayerNotFound(
                f"{name} was not recorded: run the model inside the context first", name=name
            )
        raise LayerNotFound(
            f"{name} is not recorded; this recording has: {', '.join(requested)}",
            name=name,
            nearest=requested,
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
        """Forget the previous forward."""
        self._values = {}
        self.gradients = {}

    def keep(self, point: Point, value: Tensor) -> None:
        """Keep the output of a hook point.

        Raises:
            ParameterError: gradients are requested, but none can reach the point.
        """
        self._values[point.name] = value
        if not self._wants_gradients:
            return
        if not value.requires_grad:
            reason = (
                "nothing before it requires grad; call images.requires_grad_() first, or start "
                "the graph there with cut(...)"
                if torch.is_grad_enabled()
                else "autograd is off (torch.no_grad, or a cut at a later point)"
            )
            raise ParameterError(f"no gradient can reach {point.name}: {reason}")
        gradients, name = self.gradients, point.name  # a reference to self would be a cycle

        def keep_gradient(gradient: Tensor) -> None:
            gradients[name] = gradient

        value.register_hook(keep_gradient)

    @property
    def complete(self) -> bool:
        """Whether every point has been recorded in this forward."""
        return len(self._values) == len(self.points)


@dataclass
class Cut:
    """The hook point at which the autograd graph starts.

    Attributes:
        point: the hook point.
    """

    point: Point
    _leaf: Tensor | None = None

    @property
    def leaf(self) -> Tensor:
        """The point's output in the latest forward, as a leaf that requires grad.

        Raises:
            UnsupportedModel: no forward has reached the point.
        """
        if self._leaf is None:
            raise UnsupportedModel(
                f"the forward has not reached {self.point.name}; run the model inside the context"
            )
        return self._leaf

    @property
    def reached(self) -> bool:
        """Whether this forward has reached the point."""
        return self._leaf is not None

    def begin(self) -> None:
        """Forget the previous forward."""
        self._leaf = None

    def start(self, value: Tensor) -> Tensor:
        """Turn the point's output into a leaf, and autograd on for the rest of the forward."""
        torch.set_grad_enabled(True)
        leaf = value.detach()
        if leaf.is_inference():
            leaf = leaf.clone()
        self._leaf = leaf.requires_grad_()
        return self._leaf


@dataclass
class Edits:
    """Functions that replace the outputs of hook points during a forward."""

    functions: dict[Point, Edit]
    applied: set[Point] = field(default_factory=set)

    def begin(self) -> None:
        """Forget the previous forward."""
        self.applied.clear()

    def apply(self, point: Point, value: Tensor) -> Tensor:
        """Return the tensor that replaces the point's output.

        Raises:
            ParameterError: the function returned something else, or another shape.
        """
        self.applied.add(point)
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
    """Functions that read the outputs of hook points while these are in the processor's cache."""

    functions: dict[Point, Reader]
    until_last: bool
    seen: set[Point] = field(default_factory=set)

    def begin(self) -> None:
        """Forget the previous forward."""
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
class QuantisedParts:
    """Modules without a derivative: torch would leave their share of a gradient out.

    Attributes:
        names: the modules, with their names.
    """

    names: Mapping[nn.Module, str]

    def begin(self) -> None:
        """Do nothing: no state is kept between forwards."""

    def check(self, module: nn.Module, value: Tensor | None) -> None:
        """Refuse an input through which a gradient would flow.

        Raises:
            UnsupportedModel: it requires grad.
        """
        if module not in self.names or value is None:
            return
        if value.requires_grad and torch.is_grad_enabled():
            raise UnsupportedModel(
                f"no gradient passes through {self.names[module] or 'the model'}, a quantised "
                f"{type(module).__name__}; use the model before quantisation, or a technique "
                "without gradients (occlusion, RISE)"
            )


@dataclass
class InputWatch:
    """Functions that read the inputs of modules, before the modules may overwrite them."""

    functions: dict[Point, Reader]

    def begin(self) -> None:
        """Do nothing: no state is kept between forwards."""
