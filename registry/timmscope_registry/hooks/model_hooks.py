"""`ModelHooks` records, edits and cuts a model's activations and leaves the model unchanged."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn import functional

from timmscope_registry.errors import ParameterError
from timmscope_registry.hooks.activations import ActivationCall, activation_calls
from timmscope_registry.hooks.attention import PlainAttention
from timmscope_registry.hooks.catalogue import build_catalogue
from timmscope_registry.hooks.contexts import (
    Cut,
    Edits,
    InputWatch,
    QuantisedParts,
    Recording,
    Watch,
)
from timmscope_registry.hooks.dataflow import Edge, dataflow_edges
from timmscope_registry.hooks.eval_mode import FrozenEval
from timmscope_registry.hooks.foreign_hooks import HookKeys, hooks_of
from timmscope_registry.hooks.forward_count import ForwardCount
from timmscope_registry.hooks.forward_pass import Context, ForwardPass, RuleContext
from timmscope_registry.hooks.layers import LayerCatalogue
from timmscope_registry.hooks.module_lock import ModuleLock
from timmscope_registry.hooks.module_state import Inventory, ModuleSnapshot
from timmscope_registry.hooks.points import HookPoints, Point
from timmscope_registry.hooks.random_numbers import OwnGenerators
from timmscope_registry.hooks.rules import BackwardRule
from timmscope_registry.hooks.trace import Call, trace

_Context = TypeVar("_Context", bound=Context)


class ModelHooks:
    """The hook points of one module.

    Calling it runs the module in eval mode with frozen parameters, under the contexts that are
    open in this thread. Hooks exist only while such a forward runs, and act only in its thread.
    Contexts can be nested and combined: at each point edits act first, then cuts, and recordings
    see the result.

    Several threads can use one module, through one `ModelHooks` or several: their forwards run one
    after another. Other code may run the module at the same time if it is in eval mode; in train
    mode it would find the module in eval mode. Copies and pickles have the module, but no open
    contexts.

    Args:
        module: any module that takes (B, C, H, W). If its parts are replaced, the catalogue is
            traced again.
        example: one or more normalised inputs, (B, C, H, W). The catalogue is traced on a batch of
            two, made from them, when it is first needed.
        hidden: modules that are not hook points, by name, with the reason.

    Raises:
        ParameterError: the example does not have four axes or is empty.
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
        self._prepare()

    def _prepare(self) -> None:
        self._frozen_eval = FrozenEval(self.module)
        quantised = {
            part: name
            for name, part in self.module.named_modules()
            if "quantized" in type(part).__module__
        }
        self._always: list[Context] = [QuantisedParts(quantised)] if quantised else []
        self._traced: tuple[LayerCatalogue, HookPoints] | None = None
        self._is_random = False
        self._inventory: Inventory | None = None
        self._lock = ModuleLock(self.module)
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process; `copy.deepcopy` and `pickle` make it again."""
        return {"module": self.module, "_example": self._example, "_hidden": self._hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy."""
        self.__dict__.update(state)
        self._prepare()

    @property
    def layers(self) -> LayerCatalogue:
        """The layer catalogue; the first use runs one forward.

        Raises:
            UnsupportedModel: the model cannot run on the example.
        """
        return self._trace()[0]

    @property
    def is_random(self) -> bool:
        """Whether the model draws random numbers from torch in eval mode; as costly as `layers`.

        Raises:
            UnsupportedModel: the model cannot run on the example.
        """
        self._trace()
        return self._is_random

    def dataflow_edges(self) -> list[Edge]:
        """List the modules that pass their output directly to one other module; runs one forward.

        Raises:
            UnsupportedModel: the model cannot run on the example.
        """
        with self._lock:
            return dataflow_edges(self._calls())

    def activations(self) -> list[ActivationCall]:
        """List the activation functions that are modules; runs one forward.

        Raises:
            UnsupportedModel: the model cannot run on the example.
        """
        with self._lock:
            return activation_calls(self._calls())

    def for_module(self, module: nn.Module, hidden: Mapping[str, str] | None = None) -> ModelHooks:
        """Create the hooks of another module with the same input; `hidden` as for the class."""
        return ModelHooks(module, self._example, hidden)

    def at_size(self, height: int, width: int) -> ModelHooks:
        """Create hooks whose catalogue is that of images of another size; contexts are shared."""
        example = functional.interpolate(self._example, (height, width))
        sized = ModelHooks(self.module, example, self._hidden)
        sized._lock, sized._local = self._lock, self._local
        return sized

    def has_parts(self) -> bool:
        """Whether the module has had the same parts since the latest forward or trace."""
        return self._frozen_eval.has_parts()

    def _follow_parts(self) -> None:
        if not self._frozen_eval.has_parts():
            self._frozen_eval, self._traced = FrozenEval(self.module), None

    @property
    def _placed_example(self) -> Tensor:
        """The example with the device and dtype of the parameters."""
        parameter = next(self.module.parameters(), self._example)
        return self._example.to(parameter.device, parameter.dtype)

    def _trace(self) -> tuple[LayerCatalogue, HookPoints]:
        with self._lock:
            self._follow_parts()
            if self._traced is None:
                self._traced = build_catalogue(
                    self.module, self._placed_example, self._calls(), self._hidden
                )
            return self._traced

    def _calls(self) -> list[Call]:
        with OwnGenerators(seed=0) as generators:
            calls = trace(self.module, self._placed_example, self._frozen_eval)
        self._is_random = generators.drawn
        return calls

    def __call__(self, x: Tensor) -> Tensor:
        """Run the module on (B, C, H, W).

        Returns:
            The module's output; an empty (B, 0) when a recording ended the forward early, or at
            the end if the output is not a matrix.

        Raises:
            UnsupportedModel: a gradient would have to pass through a quantised module.
        """
        contexts = [*self._contexts, *self._always]
        with self._lock:
            self._follow_parts()
            if contexts:
                return ForwardPass(self.module, self._frozen_eval, contexts).run(x)
            with self._frozen_eval.frozen():
                output: Tensor = self.module(x)
                return output

    def record(
        self, *points: str, gradients: bool = False, until_last: bool = True
    ) -> AbstractContextManager[Recording]:
        """Record the outputs of hook points in every forward inside the context.

        Args:
            points: names of layers or other modules; ``logits`` is the model's output.
            gradients: also record the gradients at the points in a later backward pass.
            until_last: stop the forward when all points are recorded, if no other open context
                needs the rest; it then returns an empty (B, 0).

        Raises:
            LayerNotFound: there is no such hook point.
            UnsupportedModel: a point does not return one tensor, or (in the forward) never runs.
            ParameterError: no point is named, or (in the forward) no gradient can reach a point.
        """
        if not points:
            raise ParameterError("name at least one hook point to record", parameter="points")
        resolved = tuple(self._point(name) for name in dict.fromkeys(points))
        return self._open(Recording(resolved, gradients=gradients, until_last=until_last))

    def edit(self, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> AbstractContextManager[None]:
        """Replace the outputs of hook points in every forward inside the context.

        Args:
            edits: by the name of the hook point, a function that gets the output and returns a
                tensor of the same shape.

        Raises:
            LayerNotFound, UnsupportedModel: as for `record`.
            ParameterError: (in the forward) a function returns something else, or another shape.
        """
        context = Edits({self._point(name): function for name, function in edits.items()})
        return self._open_silently(context)

    def watch(
        self, functions: Mapping[str, Callable[[Tensor], None]], *, until_last: bool = True
    ) -> AbstractContextManager[None]:
        """Call a function with the output of each hook point in every forward inside the context.

        Nothing is kept or copied: a function must neither change nor keep the tensor, because the
        model may overwrite it next. This is cheaper than `record` if only a reduction is needed.

        Args:
            functions: by the name of the hook point, the function to call.
            until_last: as for `record`.

        Raises:
            LayerNotFound, UnsupportedModel: as for `record`.
            ParameterError: no point is named.
        """
        if not functions:
            raise ParameterError("name at least one hook point to watch", parameter="functions")
        resolved = {self._point(name): function for name, function in functions.items()}
        return self._open_silently(Watch(resolved, until_last=until_last))

    def watch_inputs(
        self, functions: Mapping[str, Callable[[Tensor], None]]
    ) -> AbstractContextManager[None]:
        """Call a function with the input of each hook point's module before the module runs.

        The input is the first tensor among the module's arguments. A function must neither change
        nor keep it, because the module may overwrite it. This context does not decide when a
        forward stops early.

        Args:
            functions: by the name of the hook point, the function to call.

        Raises:
            LayerNotFound, UnsupportedModel: as for `record`; the latter also if (in the forward) a
                module gets no tensor.
        """
        return self._open_silently(
            InputWatch({self._point(name): function for name, function in functions.items()})
        )

    @contextmanager
    def count_forwards(self, function: Callable[[Tensor], None]) -> Iterator[None]:
        """Call a function with the input of every forward of the module in this thread.

        Forwards that other code starts are included; those that list the layers are not.

        Args:
            function: gets the input of the module, as a tensor that no other forward has.
        """
        with self._lock:
            hook = ForwardCount(function)
            handle = self.module.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            with self._lock:
                handle.remove()

    def foreign_hooks(self) -> HookKeys:
        """List the hooks on the module that other code registered."""
        with self._lock:  # no forward is running, so this class has no hooks on the module
            return hooks_of(self.module)

    def snapshot(self) -> ModuleSnapshot:
        """Take a snapshot of the module and of the open contexts, for `restore`."""
        with self._lock:  # a running forward changes modes and has hooks of its own
            if self._inventory is None or not self._inventory.has_parts():
                self._inventory = Inventory(self.module)
            return ModuleSnapshot(self._inventory, tuple(self._contexts))

    def restore(self, snapshot: ModuleSnapshot) -> tuple[list[str], list[str]]:
        """Undo what other code changed since `snapshot`.

        Returns:
            For each removed hook the name of its owner; a phrase for each other thing restored.
        """
        with self._lock:
            removed, restored = snapshot.restore()
        if snapshot.contexts != (*self._contexts,):
            self._contexts[:] = snapshot.contexts
            restored.append("the model's open contexts")
        return removed, restored

    @property
    def open_contexts(self) -> bool:
        """Whether a context is open in this thread."""
        return bool(self._contexts)

    def cut(self, point: str) -> AbstractContextManager[Cut]:
        """Start the autograd graph at a hook point.

        The modules before it run without a graph; its output becomes a leaf that requires grad. The
        rest builds a graph even if the caller has turned autograd off.

        Raises:
            LayerNotFound, UnsupportedModel: as for `record`.
        """
        return self._open(Cut(self._point(point)))

    @contextmanager
    def backward_rule(self, rule: BackwardRule) -> Iterator[None]:
        """Change the backward pass of every graph built inside the context, while it is open.

        Raises:
            UnsupportedModel: (in the forward) the graph has none of the rule's activations, or
                has activations that the rule does not cover.
        """
        context = RuleContext(rule)
        try:
            with self._open(context):
                yield
        finally:
            for handle in context.handles:
                handle.remove()

    @contextmanager
    def plain_attention(self) -> Iterator[tuple[str, ...]]:
        """Turn fused attention off in every forward inside the context.

        Attention matrices then pass through modules. The context gives the names of the modules
        with fused attention.
        """
        with self._open(PlainAttention(self.module)) as context:
            yield context.names

    @property
    def _contexts(self) -> list[Context]:
        contexts: list[Context] = self._local.__dict__.setdefault("contexts", [])
        return contexts

    def _point(self, name: str) -> Point:
        return self._trace()[1].find(name)

    @contextmanager
    def _open(self, context: _Context) -> Iterator[_Context]:
        contexts = self._contexts
        contexts.append(context)
        try:
            yield context
        finally:
            contexts[:] = [other for other in contexts if other is not context]

    @contextmanager
    def _open_silently(self, context: Context) -> Iterator[None]:
        """Open a context that gives the caller nothing."""
        with self._open(context):
            yield
