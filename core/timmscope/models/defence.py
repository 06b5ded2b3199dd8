"""Applies defences, which change the images that a model gets, before their normalisation.

`DefenceTechnique` is the base class of plugins. What a model needs of a defence is here, because a
model holds its defences and techniques are above models.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from timmscope.draws import defence_generators
from timmscope.parameters import Parameters, from_text, meanings, technique_error
from timmscope_registry import ParameterError, UnsupportedModel
from timmscope_registry.plugin_faults import brief

Backward = Literal["exact", "identity", "none"]
_SLACK = 1e-6
"""Largest excess over [0, 1] that rounding may cause."""


class Defence(Parameters):
    """A change of images before a model; a subclass implements `transform`."""

    family: ClassVar[str] = "defence"
    base: ClassVar[str] = "defence"
    backward: ClassVar[Backward] = "exact"
    """How a gradient passes: `exact`, by autograd through `transform`; `identity`, unchanged, as if
    the defence did nothing (straight-through, BPDA); `none`, not at all."""
    random: ClassVar[bool] = False
    """Whether `transform` draws random numbers."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse class variables that have no meaning, when the class is defined."""
        super().__pydantic_init_subclass__(**kwargs)
        if cls.backward not in get_args(Backward):
            choices = ", ".join(map(repr, get_args(Backward)))
            raise TypeError(f"backward of {cls.__name__} is {cls.backward!r}: choose {choices}")
        if not isinstance(cls.random, bool):
            raise TypeError(f"random of {cls.__name__} is {cls.random!r}: expected True or False")
        for name, meant in meanings(cls).items():
            if meant.kind != "technique":
                raise TypeError(
                    f"{name} of the defence {cls.__name__} names a {meant.kind}, which only a call "
                    "opens: a defence works in every forward of a model"
                )

    @abstractmethod
    def transform(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the images that the model gets instead, of the same shape, in [0, 1].

        Each image must be changed for itself, so that a result does not depend on the batch.

        Args:
            images: `(B, C, H, W)` in pixel units; in [0, 1], except where a technique leaves it.
            generators: one CPU generator per image, for a random defence; empty for others.
        """

    def around_network(self) -> AbstractContextManager[None]:
        """Return a context in which the network runs, for a defence that changes how it computes.

        A `TorchFunctionMode`, for example, replaces functions of PyTorch in the running thread. The
        module, its weights and its hooks must stay as they are.
        """
        return nullcontext()


@contextmanager
def around_networks(defences: Sequence[Defence]) -> Iterator[None]:
    """Run a network behind defences inside the context; the images are changed before it.

    Args:
        defences: in the order in which an image meets them.

    Raises:
        TechniqueError: a defence did not return a context.
    """
    with ExitStack() as stack:
        for defence in defences:
            context: object = defence.around_network()
            if not isinstance(context, AbstractContextManager):
                did = f"returned {brief(context)} around the network"
                raise technique_error(defence, did, expected="a context manager")
            stack.enter_context(context)
        yield


def as_defences(given: Iterable[Defence | str] | Defence | str) -> tuple[Defence, ...]:
    """Return defences from objects and texts such as `jpeg quality=75`.

    Raises:
        PluginError: there is no technique of a name, or its class does not follow its base.
        ParameterError: one is no defence, or has wrong parameters.
    """
    listed = [given] if isinstance(given, str | Defence) else list(given)
    return tuple(each if isinstance(each, Defence) else _from_text(each) for each in listed)


def _from_text(text: object) -> Defence:
    if not isinstance(text, str):
        raise ParameterError(
            f"{text!r} is no defence: expected a text, as in 'jpeg quality=75', or an object, as "
            "in technique('jpeg')(quality=75)",
            parameter="defences",
        )
    return from_text(
        text,
        Defence,  # type: ignore[type-abstract]
        purpose="only techniques of the base defence change the images before a model",
        parameter="defences",
    )


def defended_images(defences: Sequence[Defence], images: Tensor) -> Tensor:
    """Return what a model behind defences gets of images; differentiable as each defence says.

    Args:
        defences: in the order in which an image meets them.
        images: `(B, C, H, W)` in pixel units.

    Raises:
        UnsupportedModel: a gradient is wanted, and one of the defences passes none.
        TechniqueError: a defence did not return images of the same shape in [0, 1].
    """
    for place, defence in enumerate(defences):
        images = _behind(defence, images, place)
    return images


def _behind(defence: Defence, images: Tensor, place: int) -> Tensor:
    graph = images.requires_grad and torch.is_grad_enabled()
    if graph and defence.backward == "none":
        raise UnsupportedModel(
            f"no gradient passes the defence {defence.text()}: use an attack or explanation "
            "without gradients of the image, or the model without this defence"
        )
    generators = defence_generators(len(images), place) if defence.random else []
    exact = graph and defence.backward == "exact"
    given = images if exact else images.detach()
    with torch.set_grad_enabled(exact):
        changed = defence.transform(given.clone(), generators)
    _check(defence, changed, images)
    if exact and not changed.requires_grad:
        raise technique_error(
            defence,
            "has backward='exact' and returned images without a gradient",
            expected="operations of torch, or backward='identity' or 'none'",
        )
    changed = changed.to(images)
    if graph and not exact:
        # The difference is 0, and its gradient that of the images.
        changed = changed + (images - images.detach())
    return changed


def _check(defence: Defence, changed: object, images: Tensor) -> None:
    """Refuse what is not images of the same shape in [0, 1]; images given may exceed the range.

    Raises:
        TechniqueError: it is something else.
    """
    shape = tuple(images.shape)
    wanted = f"a tensor {shape} in [0, 1]"
    if not isinstance(changed, Tensor):
        raise technique_error(defence, f"returned {brief(changed)}", expected=wanted)
    if not changed.is_floating_point():
        raise technique_error(defence, f"returned images of {changed.dtype}", expected=wanted)
    if tuple(changed.shape) != shape:
        did = f"returned images of shape {tuple(changed.shape)}"
        raise technique_error(defence, did, expected=wanted)
    low, high = (float(value) for value in torch.aminmax(changed.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise technique_error(defence, "returned NaN or infinite pixels", expected=wanted)
    if low >= -_SLACK and high <= 1 + _SLACK:
        return
    least, most = (float(value) for value in torch.aminmax(images.detach()))
    if low < min(least, 0) - _SLACK or high > max(most, 1) + _SLACK:
        did = f"returned pixels from {low:.3g} to {high:.3g}"
        raise technique_error(defence, did, expected=wanted)
