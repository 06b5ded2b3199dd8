"""Which module hands its output straight to which other one, found by running the model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from timmscope_registry.hooks.trace import Call


@dataclass(frozen=True)
class Edge:
    """A tensor that one module returned and, among modules, only one other took.

    What functions do with the tensor is not seen: whoever rewrites the pair compares the outcome.

    Attributes:
        giver: path of the module that returned it; it has no parts and runs once in a forward.
        taker: path of the module that took it as its first argument; it runs once too.
        points: paths of all modules that returned this very tensor: the giver, and containers
            that end with it.
    """

    producer: str
    consumer: str
    points: frozenset[str]


def dataflow_edges(calls: Sequence[Call]) -> list[Edge]:
    """List the dataflow_edges of a traced forward, in execution order."""
    counts = Counter(call.path for call in calls)
    returned: dict[int, list[Call]] = defaultdict(list)
    taken: dict[int, list[Call]] = defaultdict(list)
    for call in calls:  # tensors are alive, so no two share an id
        if call.output is not None:
            returned[id(call.output)].append(call)
        if call.given is not None:
            taken[id(call.given)].append(call)
    found = []
    for identity, calls_of in returned.items():
        producer, consumers = calls_of[0], taken[identity]
        if len(consumers) != 1 or producer.handed_on or producer.overwritten:
            continue
        is_leaf = next(producer.module.children(), None) is None
        if is_leaf and counts[producer.path] == counts[consumers[0].path] == 1:
            points = frozenset(call.path for call in calls_of)
            found.append(Edge(producer.path, consumers[0].path, points))
    return found
