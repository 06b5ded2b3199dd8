"""Finds which module passes its output directly to which other module, by running the model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from timmscope_registry.hooks.trace import Call


@dataclass(frozen=True)
class Edge:
    """A tensor that one module returned and that exactly one other module got as its input.

    Functions outside modules may use the tensor too, which a trace of modules does not show: code
    that rewrites the two modules must compare the model's outputs before and after.

    Attributes:
        producer: path of the module that returned the tensor; it has no submodules and runs once
            in a forward.
        consumer: path of the module that got it as its first argument; it runs once too.
        points: paths of all modules that returned this tensor: the producer, and containers that
            end with it.
    """

    producer: str
    consumer: str
    points: frozenset[str]


def dataflow_edges(calls: Sequence[Call]) -> list[Edge]:
    """List the edges of a traced forward, in execution order."""
    counts = Counter(call.path for call in calls)
    producers: dict[int, list[Call]] = defaultdict(list)
    consumers: dict[int, list[Call]] = defaultdict(list)
    for call in calls:  # the trace keeps all tensors alive, so no two share an id
        if call.output is not None:
            producers[id(call.output)].append(call)
        if call.input is not None:
            consumers[id(call.input)].append(call)
    edges = []
    for identity, calls_of in producers.items():
        producer, users = calls_of[0], consumers[identity]
        if len(users) != 1 or producer.returns_input or producer.overwritten:
            continue
        is_leaf = next(producer.module.children(), None) is None
        if is_leaf and counts[producer.path] == counts[users[0].path] == 1:
            points = frozenset(call.path for call in calls_of)
            edges.append(Edge(producer.path, users[0].path, points))
    return edges
