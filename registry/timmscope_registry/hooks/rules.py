"""Other rules for going back through an activation: guided backpropagation and deconvnet.

The rules act on autograd nodes, found by walking the graph from the outputs. That covers modules,
functions, methods, in-place and reused activations alike, and changes nothing in the model; rules
on modules miss the functional ones and go wrong on reuse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from timmscope_registry.errors import UnsupportedModel

NodeRule = Callable[[Tensor, Tensor], Tensor]
"""(gradient at the node's input by the chain rule, gradient at its output) -> new input gradient"""

ACTIVATIONS = {
    "ReluBackward0": "ReLU",
    "HardtanhBackward0": "ReLU6",
    "ThresholdBackward0": "Threshold",
    "GeluBackward0": "GELU",
    "SiluBackward0": "SiLU",
    "HardswishBackward0": "Hardswish",
    "LeakyReluBackward0": "LeakyReLU",
    "PreluKernelBackward0": "PReLU",
    "EluBackward0": "ELU",
    "MishBackward0": "Mish",
    "SoftplusBackward0": "Softplus",
    "RreluWithNoiseBackward0": "RReLU",
    "TanhBackward0": "Tanh",
}
"""Autograd nodes of activations (gates such as the sigmoid aside) and what people call them."""


@dataclass(frozen=True, kw_only=True)
class BackwardRule:
    """A named change of the backward pass.

    Attributes:
        name: for messages.
        nodes: by autograd node name, the rule for its input gradient.
    """

    name: str
    nodes: Mapping[str, NodeRule]


def _guided(grad_input: Tensor, grad_output: Tensor) -> Tensor:
    # The node has already multiplied by 1[x > 0], or 1[0 < x < 6].
    return grad_input.clamp(min=0)


def _deconvnet(grad_input: Tensor, grad_output: Tensor) -> Tensor:
    return grad_output.clamp(min=0)


guided = BackwardRule(name="guided", nodes={"ReluBackward0": _guided, "HardtanhBackward0": _guided})
"""Guided backpropagation (Springenberg et al. 2015): g_in = g_out * 1[x > 0] * 1[g_out > 0]."""

deconvnet = BackwardRule(
    name="deconvnet", nodes={"ReluBackward0": _deconvnet, "HardtanhBackward0": _deconvnet}
)
"""Deconvnet (Zeiler and Fergus 2014): g_in = g_out * 1[g_out > 0]."""


def attach(
    rule: BackwardRule,
    outputs: Iterable[Tensor],
    stop: Iterable[Tensor],
    model: str,
    *,
    may_be_linear: bool,
) -> list[RemovableHandle]:
    """Put the rule on every matching node between the outputs and `stop` (the input images).

    A graph that starts at a cut `may_be_linear`: there the rule changes nothing, rightly.

    Raises:
        UnsupportedModel: no node matches, or there are activations that the rule does not cover.
    """
    nodes = list(_walk(outputs, stop))
    found = Counter(node.name() for node in nodes)
    foreign = {
        ACTIVATIONS[name]: count
        for name, count in found.items()
        if name in ACTIVATIONS and name not in rule.nodes
    }
    matching = [node for node in nodes if node.name() in rule.nodes]
    if foreign or not (matching or may_be_linear):
        covered = ", ".join(ACTIVATIONS.get(name, name) for name in rule.nodes)
        what = ", ".join(f"{count} {name}" for name, count in foreign.items()) or "no activation"
        raise UnsupportedModel(
            f"the {rule.name} backward rule is defined for {covered}; {model} has {what} "
            "in this graph, where it would be a plain gradient"
        )
    return [node.register_hook(_hook(rule.nodes[node.name()])) for node in matching]


def _hook(
    rule: NodeRule,
) -> Callable[[tuple[Tensor | None, ...], tuple[Tensor | None, ...]], tuple[Tensor | None, ...]]:
    def hook(
        grad_inputs: tuple[Tensor | None, ...], grad_outputs: tuple[Tensor | None, ...]
    ) -> tuple[Tensor | None, ...]:
        grad_output = grad_outputs[0]
        if grad_output is None:
            return grad_inputs
        return tuple(g if g is None else rule(g, grad_output) for g in grad_inputs)

    return hook


def _walk(outputs: Iterable[Tensor], stop: Iterable[Tensor]) -> Iterable[Node]:
    seen: set[Node] = {t.grad_fn for t in stop if t.grad_fn is not None}
    todo = [t.grad_fn for t in outputs if t.grad_fn is not None]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        todo.extend(following for following, _ in node.next_functions if following is not None)
