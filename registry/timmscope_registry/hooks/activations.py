"""Which activations a model runs, and which hook points stand right before and after them.

A layer shows what came out of its activation, or what goes into the next one. To see what a ReLU
discards, both sides are needed, also where the sum that it takes is returned by no module at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from timmscope_registry.hooks.layers import LOGITS
from timmscope_registry.hooks.trace import Call

_HOMES = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me")
_OTHER = ("MultiheadAttention", "Softmax", "Softmin", "Softmax2d", "LogSoftmax", "GLU")
"""Classes in those modules that do not act on one value at a time."""


@dataclass(frozen=True)
class ActivationCall:
    """One call of an activation function that is a module, as in ``nn.ReLU``.

    Attributes:
        point: its hook point; `ModelHooks.watch_inputs` shows what it is given there.
        kind: its class, as in ``ReLU``.
        before: hook points whose output it is given, unchanged since.
        after: hook points that return its very output: its own, and containers that end with it.
    """

    point: str
    kind: str
    before: frozenset[str]
    after: frozenset[str]


def activation_calls(calls: Sequence[Call]) -> list[ActivationCall]:
    """List the activations of a traced forward, in execution order."""
    counts = Counter(call.path for call in calls)
    found = []
    for place, call in enumerate(calls):
        kind = type(call.module)
        if kind.__module__ not in _HOMES or kind.__name__ in _OTHER or call.output is None:
            continue
        before = [
            producer
            for producer in calls[:place]
            if producer.output is call.given and producer.version == call.given_version
        ]
        after = [
            consumer
            for consumer in calls[place:]
            if consumer.output is call.output and consumer.version == call.version
        ]
        found.append(
            ActivationCall(
                _name(call, counts),
                kind.__name__,
                frozenset(_name(producer, counts) for producer in before),
                frozenset(_name(consumer, counts) for consumer in after),
            )
        )
    return found


def _name(call: Call, counts: Counter[str]) -> str:
    """As the catalogue calls it: the last call of a module by its path alone."""
    path = call.path or LOGITS
    return path if call.number == counts[call.path] - 1 else f"{path}#{call.number}"
