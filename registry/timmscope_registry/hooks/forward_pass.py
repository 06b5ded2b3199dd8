"""One forward under the open contexts: hooks on the modules needed, for as long as it lasts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from timmscope_registry.errors import UnsupportedModel
from timmscope_registry.hooks.contexts import Cut, Edits, InputWatch, Recording, Watch
from timmscope_registry.hooks.eval_mode import FrozenEval
from timmscope_registry.hooks.points import Point
from timmscope_registry.hooks.rules import BackwardRule, attach
from timmscope_registry.hooks.trace import first_tensor


class _Stop(BaseException):
    """Ends a forward early; not an `Exception`, so that no `except Exception` swallows it."""


@dataclass
class RuleScope:
    """A backward rule and what removes it from the graphs built meanwhile."""

    rule: BackwardRule
    handles: list[Any] = field(default_factory=list)

    def begin(self) -> None:
        """Graphs of earlier forwards keep the rule until the context closes."""


Scope = Recording | Watch | InputWatch | Cut | Edits | RuleScope


class ForwardPass:
    """Runs the module once. At each point edits come first, then cuts, then readers."""

    def __init__(self, module: nn.Module, frozen_eval: FrozenEval, scopes: list[Scope]) -> None:
        self._module = module
        self._frozen_eval = frozen_eval
        self._recordings = [s for s in scopes if isinstance(s, Recording)]
        self._cuts = [s for s in scopes if isinstance(s, Cut)]
        self._edits = [s for s in scopes if isinstance(s, Edits)]
        self._rules = [s for s in scopes if isinstance(s, RuleScope)]
        self._watches = [s for s in scopes if isinstance(s, Watch)]
        self._readers: list[Recording | Watch] = [*self._recordings, *self._watches]
        self._may_stop = bool(self._readers) and all(r.until_last for r in self._readers)
        self._calls: dict[nn.Module, int] = {}
        self._actions: dict[nn.Module, dict[int, list[Callable[[Tensor], Tensor]]]]
        self._actions = defaultdict(lambda: defaultdict(list))
        for edits in self._edits:
            for point in edits.functions:
                self._act(point, lambda t, e=edits, p=point: e.apply(p, t))  # type: ignore[misc]
        for cut in self._cuts:
            self._act(cut.point, cut.start)
        self._kept: dict[tuple[nn.Module, int], list[tuple[Recording, Point]]] = defaultdict(list)
        for recording in self._recordings:
            for point in recording.points:
                self._kept[point.key].append((recording, point))
        self._shown: dict[tuple[nn.Module, int], list[tuple[Watch, Point]]] = defaultdict(list)
        for watch in self._watches:
            for point in watch.functions:
                self._shown[point.key].append((watch, point))
        self._given: dict[nn.Module, dict[int, list[Callable[[Tensor], None]]]]
        self._given = defaultdict(lambda: defaultdict(list))
        for given in (scope for scope in scopes if isinstance(scope, InputWatch)):
            for point, look in given.functions.items():
                self._given[point.module][point.number].append(look)
        self._begun: dict[nn.Module, int] = {}
        self._copied = {
            point.key
            for point in (
                *(point for recording in self._recordings for point in recording.points),
                *(cut.point for cut in self._cuts),
                # An edit may return a tensor of the caller's own.
                *(point for edits in self._edits for point in edits.functions),
            )
            if point.overwritten
        }
        self._handed_on = {
            point.key for r in self._recordings for point in r.points if point.handed_on
        }
        for scope in scopes:
            scope.begin()

    def _act(self, point: Point, action: Callable[[Tensor], Tensor]) -> None:
        self._actions[point.module][point.number].append(action)

    def run(self, x: Tensor) -> Tensor:
        """Return the model's output, or an empty (B, 0) when the forward stopped early."""
        stop = _Stop()
        needs_graph = bool(self._cuts)
        with ExitStack() as stack:
            if needs_graph and torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))
            stack.enter_context(self._frozen_eval.frozen())
            places = (*self._kept, *self._shown)
            for module in {*self._actions, *(module for module, _ in places)}:
                stack.callback(module.register_forward_hook(self._hook(stop)).remove)
            for module in self._given:
                before = module.register_forward_pre_hook(self._before, with_kwargs=True)
                stack.callback(before.remove)
            if needs_graph:
                torch.set_grad_enabled(False)
            try:
                output: Tensor = self._module(x)
            except _Stop as signal:
                if signal is not stop:
                    raise
                # The frames it passed hold activations, and this frame holds it: a circle that
                # would keep a batch's memory until the garbage collector comes by.
                stop.__traceback__ = None
                output = x.new_empty((len(x), 0))
                stopped = True
            else:
                stopped = False
                self._check_reached()
            self._attach_rules(x, output, may_be_linear=needs_graph or stopped)
        return output

    def _before(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        number = self._begun.get(module, 0)
        self._begun[module] = number + 1
        given = first_tensor([*args, *kwargs.values()])
        for look in self._given[module].get(number, ()):
            if given is None:
                raise UnsupportedModel(
                    f"this {type(module).__name__} is given no tensor to look at"
                )
            look(given)

    def _hook(self, stop: _Stop) -> Callable[[nn.Module, Any, Any], Tensor | None]:
        def hook(module: nn.Module, args: object, output: object) -> Tensor | None:
            number = self._calls.get(module, 0)
            self._calls[module] = number + 1
            actions = self._actions[module].get(number, ()) if module in self._actions else ()
            kept = self._kept.get((module, number), ())
            shown = self._shown.get((module, number), ())
            if not actions and not kept and not shown:
                return None
            if not isinstance(output, Tensor):
                raise UnsupportedModel(
                    f"a hook point must return one tensor; this {type(module).__name__} "
                    f"returned a {type(output).__name__}"
                )
            value = output
            if (module, number) in self._handed_on:
                # The same tensor may have other users (a skip connection), and may be the caller's
                # own: a view keeps gradients through this point, and our hooks, apart from theirs.
                value = value.view_as(value)
            for action in actions:
                value = action(value)
            for recording, point in kept:
                recording.take(point, value)
            for watch, point in shown:
                watch.show(point, value)
            if module is not self._module and self._may_stop and self._satisfied():
                raise stop
            # The model goes on with a copy of what it is going to overwrite.
            return value.clone() if (module, number) in self._copied else value

        return hook

    def _satisfied(self) -> bool:
        return all(r.complete for r in self._readers) and all(c.reached for c in self._cuts)

    def _check_reached(self) -> None:
        missed = [p.name for r in self._recordings for p in r.points if p.name not in r]
        missed += [cut.point.name for cut in self._cuts if not cut.reached]
        missed += [p.name for e in self._edits for p in e.functions if p not in e.fired]
        missed += [p.name for w in self._watches for p in w.functions if p not in w.seen]
        if missed:
            raise UnsupportedModel(
                f"the forward never ran {', '.join(dict.fromkeys(missed))}; fused attention skips "
                "its dropout and softmax: open plain_attention() for those"
            )

    def _attach_rules(self, x: Tensor, output: object, *, may_be_linear: bool) -> None:
        ends = [value for recording in self._recordings for value in recording.values()]
        if isinstance(output, Tensor):
            ends.append(output)
        if not any(end.requires_grad for end in ends):
            return
        for scope in self._rules:
            scope.handles += attach(
                scope.rule,
                ends,
                [x],
                type(self._module).__name__,
                may_be_linear=may_be_linear,
            )
