"""Backward rules change the gradient at activations: guided backpropagation and deconvnet.

A rule acts on autograd nodes, which are found by walking the graph from the outputs. This covers
activations as modules, functions and methods, in place and reused, and changes nothing in the
model. Backward hooks on modules would miss functional activations and fail on reused modules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from timmscope_registry.errors import UnsupportedModel

ActivationRule = Callable[[Tensor, Tensor], Tensor]
"""(gradient at the input by the chain rule, gradient at the output) -> new gradient at the input"""

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
"""Activation by the name of its autograd node; gates such as the sigmoid are left out."""

_CLAMPS = ("ClampBackward1", "ClampMinBackward0")


def activation_of(node: Node) -> str | None:
    """Return the name of the activation that an autograd node computes, or None.

    `hardtanh` with the lower bound 0 counts as ReLU6, whatever its upper bound. `clamp` with the
    lower bound 0 is ReLU if it has no upper bound and ReLU6 if that is 6; with other bounds it is
    no activation.
    """
    name = node.name()
    if name == "HardtanhBackward0":
        return "ReLU6" if node._saved_min_val == 0 else "Hardtanh"  # type: ignore[attr-defined]
    if name in _CLAMPS and node._saved_min == 0:  # type: ignore[attr-defined]
        return {None: "ReLU", 6: "ReLU6"}.get(getattr(node, "_saved_max", None))
    return ACTIVATIONS.get(name)


@dataclass(frozen=True, kw_only=True)
class BackwardRule:
    """A named change of the backward pass at activations.

    Attributes:
        name: name of the rule in messages.
        activations: by activation (`ReLU`, `ReLU6`, `GELU` …), the rule for its input gradient.
    """

    name: str
    activations: Mapping[str, ActivationRule]


def _guided(grad_input: Tensor, grad_output: Tensor) -> Tensor:
    # grad_input is already multiplied by 1[x > 0], or by 1[0 < x < 6].
    return grad_input.clamp(min=0)


def _deconvnet(grad_input: Tensor, grad_output: Tensor) -> Tensor:
    return grad_output.clamp(min=0)


def _chain_rule(grad_input: Tensor, grad_output: Tensor) -> Tensor:
    return grad_input


def _redirected(grad_input: Tensor, grad_output: Tensor) -> Tensor:
    stopped = grad_input.flatten(1).abs().amax(1) == 0
    stopped = stopped.reshape(-1, *[1] * (grad_input.ndim - 1))
    return torch.where(stopped, grad_output.clamp(max=0), grad_input)


guided = BackwardRule(name="guided", activations={"ReLU": _guided, "ReLU6": _guided})
"""Guided backpropagation (Springenberg et al. 2015): g_in = g_out * 1[x > 0] * 1[g_out > 0]."""

redirected = BackwardRule(
    name="redirected",
    activations={
        **dict.fromkeys([*ACTIVATIONS.values(), "Hardtanh"], _chain_rule),
        "ReLU": _redirected,
        "ReLU6": _redirected,
    },
)
"""Around dead ReLUs (Lucid): where a ReLU stops the whole gradient of an image, what would raise
its input passes. It expects the gradient of a loss, which descent lowers."""

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
    """Register the rule on every matching node between the outputs and `stop`.

    Args:
        rule: the rule.
        outputs: tensors from which the graph is walked.
        stop: tensors at which the walk ends: the input images.
        model: name of the model in messages.
        may_be_linear: accept a graph without activations, because it starts at a cut or ends before
            the model does; there the rule rightly changes nothing.

    Returns:
        Handles that remove the rule.

    Raises:
        UnsupportedModel: no node matches, or there are activations that the rule does not cover.
    """
    nodes = [
        (node, activation)
        for node in _walk(outputs, stop)
        if (activation := activation_of(node)) is not None
    ]
    uncovered = Counter(activation for _, activation in nodes if activation not in rule.activations)
    if uncovered or not (nodes or may_be_linear):
        covered = ", ".join(rule.activations)
        listed = ", ".join(f"{count} {name}" for name, count in uncovered.items())
        raise UnsupportedModel(
            f"the {rule.name} backward rule is defined for {covered}; {model} has "
            f"{listed or 'no activation'} in this graph, where it would be a plain gradient"
        )
    return [
        node.register_hook(_hook(rule.activations[activation], _inside_bounds(node)))
        for node, activation in nodes
    ]


def _inside_bounds(node: Node) -> Tensor | None:
    """Mask of a clamp's input strictly inside its bounds; None for other nodes.

    At a bound itself `clamp` passes the gradient on, but ReLU and ReLU6 do not.
    """
    if node.name() not in _CLAMPS:
        return None
    values: Tensor = node._saved_self  # type: ignore[attr-defined]
    inside = values.detach() > 0
    upper = getattr(node, "_saved_max", None)
    return inside if upper is None else inside & (values.detach() < upper)


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
    """Yield each node between the outputs and `stop` once."""
    seen: set[Node] = {t.grad_fn for t in stop if t.grad_fn is not None}
    todo = [t.grad_fn for t in outputs if t.grad_fn is not None]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        todo.extend(following for following, _ in node.next_functions if following is not None)
