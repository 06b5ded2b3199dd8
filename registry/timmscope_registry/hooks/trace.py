"""Runs one forward and records every module call, from which the layer catalogue is built.

The forward runs in eval mode, with frozen parameters and without autograd.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from timmscope_registry.errors import TimmscopeError, UnsupportedModel
from timmscope_registry.hooks.eval_mode import FrozenEval
from timmscope_registry.hooks.parts import parts_of
from timmscope_registry.hooks.running import is_running, running, tracing
from timmscope_registry.out_of_memory import is_out_of_memory

BATCH = 2


@dataclass(eq=False)
class Call:
    """One call of one module.

    Attributes:
        path: the module's first name in `named_modules` ("" is the root).
        module: the module.
        number: index of the call among the module's calls in this forward.
        order: index of the call among all calls, in the order in which they finish.
        parts_start: index of the first call made inside this one; the others follow up to `order`.
        input: the first tensor among the arguments.
        input_version: that tensor's version counter when the call began.
        output: the returned tensor; None if the call did not return exactly one tensor.
        returned: type name of the returned value.
        version: the output's version counter when the call finished.
        returns_input: whether it returned an argument itself, unchanged (`Identity`, dropout).
        parts: where the call returned several tensors, each of them as a call of its own, by its
            place (``[1]``, ``[boxes]``).
    """

    path: str
    module: nn.Module
    number: int
    order: int
    parts_start: int
    input: Tensor | None
    input_version: int
    output: Tensor | None
    returned: str
    version: int
    returns_input: bool
    parts: Mapping[str, Call] = field(default_factory=dict)

    @property
    def overwritten(self) -> bool:
        """Whether the output was changed in place after the call."""
        return self.output is not None and self.output._version != self.version


def trace(module: nn.Module, example: Tensor, frozen_eval: FrozenEval) -> list[Call]:
    """Run `module` once on two images and return its calls in the order in which they finish.

    The list keeps the outputs of all calls alive, so that a tensor that was overwritten in place
    cannot be confused with a new tensor in reused memory.

    Raises:
        UnsupportedModel: the model cannot run on the example.
        TimmscopeError: the model itself raises it.
    """
    calls: list[Call] = []
    begun: list[tuple[int, dict[int, int]]] = []  # calls finished, versions of the arguments
    numbers: dict[nn.Module, int] = {}
    # torch may call the hooks in another thread while they are registered or removed, and then
    # without the keyword arguments that they ask for.
    paths = {part: path for path, part in module.named_modules()}

    def before(part: nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> None:
        if not is_running(calls):
            return
        arguments = _tensors([*args, *kwargs.values()])
        begun.append((len(calls), {id(tensor): tensor._version for tensor in arguments}))

    def after(
        part: nn.Module, args: tuple[Any, ...], kwargs: Any = None, output: object = None
    ) -> None:
        if not is_running(calls):
            return
        first = first_tensor([*args, *kwargs.values()])
        number = numbers.get(part, 0)
        start, versions = begun.pop()
        numbers[part] = number + 1
        call = Call(
            path=paths[part],
            module=part,
            number=number,
            order=len(calls),
            parts_start=start,
            input=first,
            input_version=versions.get(id(first), 0),
            output=None,
            returned=type(output).__name__,
            version=0,
            returns_input=False,
        )

        def returning(tensor: Tensor) -> Call:
            returns_input = versions.get(id(tensor)) == tensor._version
            return replace(
                call, output=tensor, version=tensor._version, returns_input=returns_input
            )

        if isinstance(output, Tensor):
            calls.append(returning(output))
        else:
            parts = {place: returning(tensor) for place, tensor in parts_of(output).items()}
            calls.append(replace(call, parts=parts))

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(frozen_eval.frozen())
        images = example.detach().clone()
        if len(images) != BATCH:
            images = images[:1].repeat(BATCH, *[1] * (images.ndim - 1))
        for part in paths:
            stack.callback(part.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(part.register_forward_hook(after, with_kwargs=True).remove)
        try:
            with running(calls), tracing():
                module(images)
        except TimmscopeError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise UnsupportedModel(
                f"{type(module).__name__} cannot run on an input of shape {tuple(images.shape)}: "
                f"{type(error).__name__}: {error}"
            ) from error
    return calls


def first_tensor(values: Iterable[object]) -> Tensor | None:
    """Return the first tensor among a call's arguments, also inside lists and tuples."""
    return next(_tensors(values), None)


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
