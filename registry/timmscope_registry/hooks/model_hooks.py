"""`ModelHooks`: record, edit, cut and re-rule a model, and leave it as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from torch import Tensor, nn

from timmscope_registry.errors import ParameterError
from timmscope_registry.hooks.activations import ActivationCall, activation_calls
from timmscope_registry.hooks.attention import plain_attention
from timmscope_registry.hooks.catalogue import build_catalogue
from timmscope_registry.hooks.contexts import Cut, Edits, InputWatch, Recording, Watch
from timmscope_registry.hooks.dataflow import Edge, dataflow_edges
from timmscope_registry.hooks.eval_mode import FrozenEval
from timmscope_registry.hooks.foreign_hooks import HookKeys, hooks_of
from timmscope_registry.hooks.forward_pass import ForwardPass, RuleScope, Scope
from timmscope_registry.hooks.layers import LayerCatalogue
from timmscope_registry.hooks.module_state import Inventory, ModuleSnapshot
from timmscope_registry.hooks.points import HookPoints, Point
from timmscope_registry.hooks.rules import BackwardRule
from timmscope_registry.hooks.trace import trace

_Scope = TypeVar("_Scope", bound=Scope)


class ModelHooks:
    """The hook points of one module.

    Calling it runs the module in eval mode with frozen parameters, under the contexts that are
    open in this thread. Hooks exist only while such a forward runs. Contexts nest and combine: at
    each point edits act first, then cuts, and recordings see the outcome.

    Args:
        module: any module that takes (B, 3, H, W) and returns logits; its parts must not be
            replaced afterwards.
        example: one normalised input, (1 or more, 3, H, W); the catalogue is traced on it, with a
            batch of two, when it is first needed.
        hidden: modules that are no hook points, by name, and why.
    """

    def __init__(
        self, module: nn.Module, example: Tensor, hidden: Mapping[str, str] | None = None
    ) -> None:
        if example.ndim != 4 or len(example) < 1:
            raise ParameterError(
                f"the example must be (B, C, H, W) and is {tuple(example.shape)}",
                parameter="example",
            )
        self.module = module
        self._example = example.detach()
        self._hidden = dict(hidden or {})
        self._frozen_eval = FrozenEval(module)
        self._traced: tuple[LayerCatalogue, HookPoints] | None = None
        self._inventory: Inventory | None = None
        self._lock = threading.RLock()
        self._local = threading.local()

    @property
    def layers(self) -> LayerCatalogue:
        """The layer catalogue; the first use runs one forward.

        Raises:
            UnsupportedModel: the model cannot run on the example.
        """
        return self._trace()[0]

    def dataflow_edges(self) -> list[Edge]:
        """Say which modules hand their output straight to one other module; runs one forward.

        Raises:
            UnsupportedModel: the model cannot run on the example.
        """
        with self._lock:
            return dataflow_edges(trace(self.module, self._placed_example, self._frozen_eval))

    def activations(self) -> list[ActivationCall]:
        """List the activation functions that are modules, with what they take; runs one forward.

        Raises:
            UnsupportedModel: the model cannot run on the example.
        """
        with self._lock:
            return activation_calls(trace(self.module, self._placed_example, self._frozen_eval))

    def around(self, module: nn.Module, hidden: Mapping[str, str] | None = None) -> ModelHooks:
        """Hooks of another module that takes the same input; `hidden` as for the class."""
        return ModelHooks(module, self._example, hidden)

    @property
    def _placed_example(self) -> Tensor:
        parameter = next(self.module.parameters(), self._example)
        return self._example.to(parameter.device, parameter.dtype)

    def _trace(self) -> tuple[LayerCatalogue, HookPoints]:
        with self._lock:
            if self._traced is None:
                self._traced = build_catalogue(
                    self.module, self._placed_example, self._frozen_eval, self._hidden
                )
            return self._traced

    def __call__(self, x: Tensor) -> Tensor:
        """Run the module on (B, 3, H, W).

        Returns:
            The module's output; an empty (B, 0) when a recording ended the forward early.
        """
        scopes = self._scopes
        with self._lock:
            if scopes:
                return ForwardPass(self.module, self._frozen_eval, scopes).run(x)
            with self._frozen_eval.frozen():
                output: Tensor = self.module(x)
                return output

    def record(
        self, *points: str, gradients: bool = False, until_last: bool = True
    ) -> AbstractContextManager[Recording]:
        """Record the outputs of hook points in every forward inside the context.

        Args:
            points: names of layers or other modules; ``logits`` is the model's output.
            gradients: also catch their gradients in a later backward pass.
            until_last: end the forward when all are recorded, if no other open context needs the
                rest; it then returns an empty (B, 0).

        Raises:
            LayerNotFound: no such hook point.
            UnsupportedModel: a point does not return one tensor, or (in the forward) never runs.
            ParameterError: (in the forward) no gradient can reach a point.
        """
        if not points:
            raise ParameterError("name at least one hook point to record", parameter="points")
        found = tuple(self._point(name) for name in dict.fromkeys(points))
        return self._open(Recording(found, gradients=gradients, until_last=until_last))

    def edit(self, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> AbstractContextManager[None]:
        """Replace the outputs of hook points by functions of them, shapes unchanged.

        Raises:
            LayerNotFound, UnsupportedModel: as for `record`.
            ParameterError: (in the forward) a function returns something of another shape.
        """
        scope = Edits({self._point(name): function for name, function in edits.items()})
        return self._open_silently(scope)

    def watch(
        self, functions: Mapping[str, Callable[[Tensor], None]], *, until_last: bool = True
    ) -> AbstractContextManager[None]:
        """Call a function with the output of each hook point in every forward inside the context.

        Nothing is kept or copied: a function reads the tensor while it is fresh, and must neither
        change nor keep it, since the model may overwrite it next. Cheaper than `record` where a
        reduction is all that is wanted.

        Args:
            functions: what to call, by the name of the hook point.
            until_last: as for `record`.

        Raises:
            LayerNotFound, UnsupportedModel: as for `record`.
        """
        if not functions:
            raise ParameterError("name at least one hook point to watch", parameter="functions")
        found = {self._point(name): function for name, function in functions.items()}
        return self._open_silently(Watch(found, until_last=until_last))

    def watch_inputs(
        self, functions: Mapping[str, Callable[[Tensor], None]]
    ) -> AbstractContextManager[None]:
        """Call a function with what each hook point's module is given, before the module runs.

        That is the first tensor among its arguments. A function must neither change nor keep it:
        the module may overwrite it. No forward ends early for it, nor waits for it.

        Args:
            functions: what to call, by the name of the hook point.

        Raises:
            LayerNotFound, UnsupportedModel: as for `record`.
        """
        return self._open_silently(
            InputWatch({self._point(name): function for name, function in functions.items()})
        )

    def others(self) -> HookKeys:
        """List the hooks on the module that are not this class's own."""
        with self._lock:  # no forward is running, so none of ours is there
            return hooks_of(self.module)

    def snapshot(self) -> ModuleSnapshot:
        """Remember the module as it is, to take it back so after others had it in hand."""
        with self._lock:  # a forward changes modes and has hooks, too, for its own time
            if self._inventory is None or not self._inventory.has_parts():
                self._inventory = Inventory(self.module)
            return ModuleSnapshot(self._inventory, tuple(self._scopes))

    def restore(self, snapshot: ModuleSnapshot) -> tuple[list[str], list[str]]:
        """Undo what others did since `lend`.

        Returns:
            Whose hooks were removed, a name for each hook; words for what else was put back.
        """
        with self._lock:
            removed, found = snapshot.restore()
        if snapshot.contexts != (*self._scopes,):
            self._scopes[:] = snapshot.contexts
            found.append("the model's open contexts")
        return removed, found

    @property
    def open_contexts(self) -> bool:
        """Whether a context is open in this thread, so that a forward is more than the bare one."""
        return bool(self._scopes)

    def cut(self, point: str) -> AbstractContextManager[Cut]:
        """Start the autograd graph at a hook point.

        All before it runs without a graph; its output becomes a leaf that requires grad. The rest
        builds a graph even where the caller has turned autograd off.

        Raises:
            LayerNotFound, UnsupportedModel: as for `record`.
        """
        return self._open(Cut(self._point(point)))

    @contextmanager
    def backward_rule(self, rule: BackwardRule) -> Iterator[None]:
        """Change the backward pass of every graph built inside, as long as the context is open.

        Raises:
            UnsupportedModel: (in the forward) the graph has none of the rule's activations, or
                others that it does not cover.
        """
        scope = RuleScope(rule)
        try:
            with self._open(scope):
                yield
        finally:
            for handle in scope.handles:
                handle.remove()

    def plain_attention(self) -> AbstractContextManager[tuple[str, ...]]:
        """Turn fused attention off, so that attention matrices pass through modules."""
        return plain_attention(self.module)

    @property
    def _scopes(self) -> list[Scope]:
        scopes: list[Scope] = self._local.__dict__.setdefault("scopes", [])
        return scopes

    def _point(self, name: str) -> Point:
        return self._trace()[1].find(name)

    @contextmanager
    def _open(self, scope: _Scope) -> Iterator[_Scope]:
        scopes = self._scopes
        scopes.append(scope)
        try:
            yield scope
        finally:
            scopes[:] = [other for other in scopes if other is not scope]

    @contextmanager
    def _open_silently(self, scope: Scope) -> Iterator[None]:
        with self._open(scope):
            yield
