"""One forward that notes what every module returns: the raw material of the catalogue.

Nothing is left behind: the forward runs in eval mode, frozen, without autograd, and the random
number generators are put back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from timmscope_registry.errors import UnsupportedModel
from timmscope_registry.hooks.eval_mode import FrozenEval

BATCH = 2


@dataclass(eq=False)
class Call:
    """One call of one module, in the order in which calls finish.

    Attributes:
        path: the module's first name in `named_modules` ("" is the root).
        number: how many calls of the same module came before.
        begun: how many calls had finished when this one began; those from there on are its parts.
        given: the first tensor among its arguments.
        given_version: that tensor's version when the call began.
        output: what it returned; None unless it is one tensor.
        returned: type name of what it returned.
        version: the output's version when the call finished.
        handed_on: whether it returned its argument itself, untouched (`Identity`, dropout).
    """

    path: str
    module: nn.Module
    number: int
    order: int
    begun: int
    given: Tensor | None
    given_version: int
    output: Tensor | None
    returned: str
    version: int
    handed_on: bool

    @property
    def overwritten(self) -> bool:
        """Whether the output was changed in place after the call."""
        return self.output is not None and self.output._version != self.version


def trace(module: nn.Module, example: Tensor, frozen_eval: FrozenEval) -> list[Call]:
    """Run `module` once on two images and return its calls.

    The outputs of all calls are alive together until the list is dropped: that is what tells
    an overwritten tensor from a fresh one in reused memory.

    Raises:
        UnsupportedModel: the model cannot run on the example.
    """
    calls: list[Call] = []
    begun: list[tuple[int, dict[int, int]]] = []  # calls finished, versions of the arguments
    numbers: dict[nn.Module, int] = {}
    paths = {part: path for path, part in module.named_modules()}

    def before(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        every = _tensors([*args, *kwargs.values()])
        begun.append((len(calls), {id(given): given._version for given in every}))

    def after(
        part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
    ) -> None:
        tensor = output if isinstance(output, Tensor) else None
        given = first_tensor([*args, *kwargs.values()])
        number = numbers.get(part, 0)
        start, versions = begun.pop()
        numbers[part] = number + 1
        calls.append(
            Call(
                path=paths[part],
                module=part,
                number=number,
                order=len(calls),
                begun=start,
                given=given,
                given_version=versions.get(id(given), 0),
                output=tensor,
                returned=type(output).__name__,
                version=tensor._version if tensor is not None else 0,
                handed_on=tensor is not None and versions.get(id(tensor)) == tensor._version,
            )
        )

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_kept_generators(example))
        stack.enter_context(frozen_eval.frozen())
        images = example.detach().clone()
        if len(images) != BATCH:
            images = images[:1].repeat(BATCH, *[1] * (images.ndim - 1))
        for part in paths:
            stack.callback(part.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(part.register_forward_hook(after, with_kwargs=True).remove)
        try:
            module(images)
        except Exception as error:
            raise UnsupportedModel(
                f"{type(module).__name__} cannot run on an input of shape {tuple(images.shape)}: "
                f"{type(error).__name__}: {error}"
            ) from error
    return calls


def first_tensor(values: Iterable[object]) -> Tensor | None:
    """The first tensor among the arguments of a call, in lists and tuples too."""
    return next(_tensors(values), None)


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


@contextmanager
def _kept_generators(example: Tensor) -> Iterator[None]:
    devices = [example.device] if example.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
