"""Runs one forward under the open contexts; its hooks exist only while it runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from timmscope_registry.errors import UnsupportedModel
from timmscope_registry.hooks.attention import PlainAttention
from timmscope_registry.hooks.contexts import (
    Cut,
    Edits,
    InputWatch,
    QuantisedParts,
    Reader,
    Recording,
    Watch,
)
from timmscope_registry.hooks.eval_mode import FrozenEval
from timmscope_registry.hooks.parts import part_at, with_part
from timmscope_registry.hooks.points import Point
from timmscope_registry.hooks.rules import BackwardRule, attach
from timmscope_registry.hooks.running import is_running, paused, running
from timmscope_registry.hooks.trace import first_tensor


class _Stop(BaseException):
    """Ends a forward early; no `Exception`, so that no `except Exception` catches it."""


@dataclass
class RuleContext:
    """A backward rule, and the handles that remove it from the graphs built in the context."""

    rule: BackwardRule
    handles: list[Any] = field(default_factory=list)

    def begin(self) -> None:
        """Do nothing: graphs of earlier forwards keep the rule until the context closes."""


Context = (
    Recording | Watch | InputWatch | Cut | Edits | RuleContext | PlainAttention | QuantisedParts
)

Key = tuple[nn.Module, int, str]
"""Module, number of its call, and place of a tensor in its output."""


class ForwardPass:
    """One forward of a module; at each point edits act first, then cuts, then readers.

    Its hooks act only in the thread that runs it. What other threads compute with the module in
    the meantime passes them unchanged.

    Args:
        module: the model.
        frozen_eval: keeps the module in eval mode during the forward.
        contexts: the open contexts, in the order in which they were opened.
    """

    def __init__(self, module: nn.Module, frozen_eval: FrozenEval, contexts: list[Context]) -> None:
        self._module = module
        self._frozen_eval = frozen_eval
        self._recordings = [c for c in contexts if isinstance(c, Recording)]
        self._cuts = [c for c in contexts if isinstance(c, Cut)]
        self._edits = [c for c in contexts if isinstance(c, Edits)]
        self._rules = [c for c in contexts if isinstance(c, RuleContext)]
        self._watches = [c for c in contexts if isinstance(c, Watch)]
        self._quantised = [c for c in contexts if isinstance(c, QuantisedParts)]
        self._attentions = [c for c in contexts if isinstance(c, PlainAttention)]
        self._readers: list[Recording | Watch] = [*self._recordings, *self._watches]
        self._may_stop = bool(self._readers) and all(r.until_last for r in self._readers)
        self._finished: dict[nn.Module, int] = {}  # calls of each module that have finished
        self._actions: dict[Key, list[Callable[[Tensor], Tensor]]] = defaultdict(list)
        for edits in self._edits:
            for point in edits.functions:
                self._add_action(point, lambda t, e=edits, p=point: e.apply(p, t))  # type: ignore[misc]
        for cut in self._cuts:
            self._add_action(cut.point, cut.start)
        self._recorded: dict[Key, list[tuple[Recording, Point]]] = defaultdict(list)
        for recording in self._recordings:
            for point in recording.points:
                self._recorded[point.key].append((recording, point))
        self._watched: dict[Key, list[tuple[Watch, Point]]] = defaultdict(list)
        for watch in self._watches:
            for point in watch.functions:
                self._watched[point.key].append((watch, point))
        self._input_readers: dict[nn.Module, dict[int, list[Reader]]]
        self._input_readers = defaultdict(lambda: defaultdict(list))
        for input_watch in (c for c in contexts if isinstance(c, InputWatch)):
            for point, reader in input_watch.functions.items():
                self._input_readers[point.module][point.number].append(reader)
        self._begun: dict[nn.Module, int] = {}  # calls of each watched module that have begun
        self._copied = {
            point.key
            for point in (
                *(point for recording in self._recordings for point in recording.points),
                *(cut.point for cut in self._cuts),
                # An edit may return a tensor that the caller still uses.
                *(point for edits in self._edits for point in edits.functions),
            )
            if point.overwritten
        }
        self._returns_input = {
            point.key for r in self._recordings for point in r.points if point.returns_input
        }
        self._places: dict[nn.Module, dict[int, list[str]]]  # of the tensors that are used
        self._places = defaultdict(lambda: defaultdict(list))
        for module, number, place in dict.fromkeys(
            (*self._actions, *self._recorded, *self._watched)
        ):
            self._places[module][number].append(place)
        for context in contexts:
            context.begin()

    def _add_action(self, point: Point, action: Callable[[Tensor], Tensor]) -> None:
        self._actions[point.key].append(action)

    def run(self, x: Tensor) -> Tensor:
        """Return the model's output, or an empty (B, 0) when the forward stopped early."""
        stop = _Stop()
        needs_graph = bool(self._cuts)
        with ExitStack() as stack:
            if needs_graph and torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))
            stack.enter_context(self._frozen_eval.frozen())
            for attention in self._attentions:
                stack.enter_context(attention.off())
            for module in self._places:
                stack.callback(module.register_forward_hook(self._forward_hook(stop)).remove)
            quantised = {module for parts in self._quantised for module in parts.names}
            for module in {*self._input_readers, *quantised}:
                handle = module.register_forward_pre_hook(self._pre_hook, with_kwargs=True)
                stack.callback(handle.remove)
            if needs_graph:
                torch.set_grad_enabled(False)
            try:
                with running(self):
                    output: Tensor = self._module(x)
            except _Stop as signal:
                if signal is not stop:
                    raise
                # Its traceback refers to frames that hold activations, and this frame refers to it:
                # that cycle would keep the batch's memory until the garbage collector runs.
                stop.__traceback__ = None
                output = x.new_empty((len(x), 0))
                stopped = True
            else:
                stopped = False
                self._check_reached()
            self._attach_rules(x, output, may_be_linear=needs_graph or stopped)
        return output

    def _pre_hook(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        # Another thread may run the module before torch notes that the hook wants keyword
        # arguments: then there are none.
        if not is_running(self):
            return
        number = self._begun.get(module, 0)
        self._begun[module] = number + 1
        value = first_tensor([*args, *kwargs.values()])
        for parts in self._quantised:
            parts.check(module, value)
        for reader in self._input_readers.get(module, {}).get(number, ()):
            if value is None:
                raise UnsupportedModel(f"this {type(module).__name__} gets no tensor as its input")
            with paused():
                reader(value)

    def _forward_hook(self, stop: _Stop) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, args: object, output: object) -> object:
            if not is_running(self):
                return None
            number = self._finished.get(module, 0)
            self._finished[module] = number + 1
            places = self._places[module].get(number, ())
            if not places:
                return None
            for place in places:
                output = with_part(output, place, self._serve((module, number, place), output))
            logits = module is self._module and isinstance(output, Tensor) and output.ndim == 2
            if not logits and self._may_stop and self._is_complete():
                raise stop
            return output

        return hook

    def _serve(self, key: Key, output: object) -> Tensor:
        """Act on one tensor of a module's output; returns the tensor with which it goes on."""
        module, _, place = key
        value = part_at(output, place)
        if not isinstance(value, Tensor):
            raise UnsupportedModel(
                f"a hook point must be one tensor; this {type(module).__name__} returned a "
                f"{type(value).__name__}" + (f" at {place}" if place else "")
            )
        if key in self._returns_input:
            # Others may use the same tensor (a skip connection, the caller). A view separates
            # the gradient at this point, and our hooks, from theirs.
            value = value.view_as(value)
        with paused():
            for action in self._actions.get(key, ()):
                value = action(value)
            for recording, point in self._recorded.get(key, ()):
                recording.keep(point, value)
            for watch, point in self._watched.get(key, ()):
                watch.show(point, value)
        # If the model overwrites the tensor later, let it overwrite a copy.
        return value.clone() if key in self._copied else value

    def _is_complete(self) -> bool:
        """Whether all readers and cuts have been served, so that the forward may stop."""
        return all(r.complete for r in self._readers) and all(c.reached for c in self._cuts)

    def _check_reached(self) -> None:
        missed = [p.name for r in self._recordings for p in r.points if p.name not in r]
        missed += [cut.point.name for cut in self._cuts if not cut.reached]
        missed += [p.name for e in self._edits for p in e.functions if p not in e.applied]
        missed += [p.name for w in self._watches for p in w.functions if p not in w.seen]
        if missed:
            raise UnsupportedModel(
                f"the forward never ran {', '.join(dict.fromkeys(missed))}; fused attention does "
                "not run its dropout and softmax modules: open plain_attention() to use those"
            )

    def _attach_rules(self, x: Tensor, output: object, *, may_be_linear: bool) -> None:
        ends = [value for recording in self._recordings for value in recording.values()]
        if isinstance(output, Tensor):
            ends.append(output)
        if not any(end.requires_grad for end in ends):
            return
        for context in self._rules:
            context.handles += attach(
                context.rule,
                ends,
                [x],
                type(self._module).__name__,
                may_be_linear=may_be_linear,
            )
