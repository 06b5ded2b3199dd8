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

ActivationRule = Callable[[Tensor, Tensor], Tensor]
"""(gradient at its input by the chain rule, gradient at its output) -> new gradient at its input"""

ACTIVATIONS = {
    "ReluBackward0": "ReLU",
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
"""Autograd nodes that are one activation alone (gates such as the sigmoid aside)."""

_CLAMPS = ("ClampBackward1", "ClampMinBackward0")


def activation_of(node: Node) -> str | None:
    """The activation that an autograd node is, by the name people call it; None if it is none.

    `hardtanh` is ReLU6 where it begins at 0 (whatever its upper end), and `clamp` is ReLU or ReLU6
    where it begins at 0 and ends nowhere or at 6; with other bounds a clamp is no activation.
    """
    name = node.name()
    if name == "HardtanhBackward0":
        return "ReLU6" if node._saved_min_val == 0 else "Hardtanh"  # type: ignore[attr-defined]
    if name in _CLAMPS and node._saved_min == 0:  # type: ignore[attr-defined]
        return {None: "ReLU", 6: "ReLU6"}.get(getattr(node, "_saved_max", None))
    return ACTIVATIONS.get(name)


@dataclass(frozen=True, kw_only=True)
class BackwardRule:
    """A named change of the backward pass.

    Attributes:
        name: for messages.
        activations: by activation (`ReLU`, `ReLU6`, `GELU` …), the rule for its input gradient.
    """

    name: str
    activations: Mapping[str, ActivationRule]


def _guided(grad_input: Tensor, grad_output: Tensor) -> Tensor:
    # The node has already multiplied by 1[x > 0], or 1[0 < x < 6].
    return grad_input.clamp(min=0)


def _deconvnet(grad_input: Tensor, grad_output: Tensor) -> Tensor:
    return grad_output.clamp(min=0)


guided = BackwardRule(name="guided", activations={"ReLU": _guided, "ReLU6": _guided})
"""Guided backpropagation (Springenberg et al. 2015): g_in = g_out * 1[x > 0] * 1[g_out > 0]."""

deconvnet = BackwardRule(name="deconvnet", activations={"ReLU": _deconvnet, "ReLU6": _deconvnet})
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

    A graph that starts at a cut, or ends before the model does, `may_be_linear`: there the rule
    changes nothing, rightly, as at the first convolution.

    Raises:
        UnsupportedModel: no node matches, or there are activations that the rule does not cover.
    """
    found = [
        (node, activation)
        for node in _walk(outputs, stop)
        if (activation := activation_of(node)) is not None
    ]
    foreign = Counter(activation for _, activation in found if activation not in rule.activations)
    if foreign or not (found or may_be_linear):
        covered = ", ".join(rule.activations)
        what = ", ".join(f"{count} {name}" for name, count in foreign.items()) or "no activation"
        raise UnsupportedModel(
            f"the {rule.name} backward rule is defined for {covered}; {model} has {what} "
            "in this graph, where it would be a plain gradient"
        )
    return [
        node.register_hook(_hook(rule.activations[activation], _between_the_kinks(node)))
        for node, activation in found
    ]


def _between_the_kinks(node: Node) -> Tensor | None:
    """Where a clamp's input is inside its bounds: at the very bounds, ReLUs let nothing back."""
    if node.name() not in _CLAMPS:
        return None
    values: Tensor = node._saved_self  # type: ignore[attr-defined]
    inside = values.detach() > 0
    highest = getattr(node, "_saved_max", None)
    return inside if highest is None else inside & (values.detach() < highest)


def _hook(
    rule: ActivationRule, inside: Tensor | None
) -> Callable[[tuple[Tensor | None, ...], tuple[Tensor | None, ...]], tuple[Tensor | None, ...]]:
    def hook(
        grad_inputs: tuple[Tensor | None, ...], grad_outputs: tuple[Tensor | None, ...]
    ) -> tuple[Tensor | None, ...]:
        grad_output = grad_outputs[0]
        if grad_output is None:
            return grad_inputs
        return tuple(
            None if g is None else rule(g if inside is None else g * inside, grad_output)
            for g in grad_inputs
        )

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
