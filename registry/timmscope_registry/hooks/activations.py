"""Lists a model's activation functions and the hook points directly before and after each.

A layer's output may be the output of an activation, or the input of the next one. To see what a
ReLU discards, both sides are needed, even if no module returns the sum that the ReLU gets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from timmscope_registry.hooks.layers import LOGITS
from timmscope_registry.hooks.trace import Call

_ACTIVATION_MODULES = (
    "torch.nn.modules.activation",
    "timm.layers.activations",
    "timm.layers.activations_me",
)
_NOT_ELEMENTWISE = ("MultiheadAttention", "Softmax", "Softmin", "Softmax2d", "LogSoftmax", "GLU")
"""Classes in those modules that combine several elements."""


@dataclass(frozen=True)
class ActivationCall:
    """One call of an activation function that is a module, as in ``nn.ReLU``.

    Attributes:
        point: its hook point; `ModelHooks.watch_inputs` shows its input there.
        kind: name of its class, as in ``ReLU``.
        before: hook points whose output is its unchanged input.
        after: hook points that return the same tensor: its own, and containers that end with it.
    """

    point: str
    kind: str
    before: frozenset[str]
    after: frozenset[str]


def activation_calls(calls: Sequence[Call]) -> list[ActivationCall]:
    """List the activations of a traced forward, in execution order."""
    counts = Counter(call.path for call in calls)
    activations = []
    for index, call in enumerate(calls):
        kind = type(call.module)
        if (
            kind.__module__ not in _ACTIVATION_MODULES
            or kind.__name__ in _NOT_ELEMENTWISE
            or call.output is None
        ):
            continue
        before = [
            producer
            for producer in calls[:index]
            if producer.output is call.input and producer.version == call.input_version
        ]
        after = [
            container
            for container in calls[index:]
            if container.output is call.output and container.version == call.version
        ]
        activations.append(
            ActivationCall(
                _name(call, counts),
                kind.__name__,
                frozenset(_name(producer, counts) for producer in before),
                frozenset(_name(container, counts) for container in after),
            )
        )
    return activations


def _name(call: Call, counts: Counter[str]) -> str:
    """Return the call's name in the catalogue: the path alone for a module's last call."""
    path = call.path or LOGITS
    return path if call.number == counts[call.path] - 1 else f"{path}#{call.number}"
