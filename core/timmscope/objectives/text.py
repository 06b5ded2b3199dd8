"""Parses the text form of objectives, which command lines, file names and result files use.

============================  =====================================================
``top``                       the model's own prediction
``class:281``, ``281``        a class by index
``class:tiger cat``           a class by name; ``class:3|7|7`` is one per image
``blocks.4[17]``              channel 17 of a layer
``blocks.4[17,3,5]``          its neuron at row 3, column 5; or ``[17,centre]``
``blocks.4``                  energy of the layer
``blocks.4@vector.npy``       a direction, from a file or as ``[0.1, …]``
``0.5*blocks.4[17] - top``    sums and multiples, with spaces around + and -
============================  =====================================================
"""

from __future__ import annotations

import json
import re

from timmscope.objectives.algebra import Objective
from timmscope.objectives.kinds import (
    LayerOrClass,
    channel,
    class_logit,
    direction,
    load_direction,
    neuron,
    top,
)
from timmscope_registry import ObjectiveError

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_FACTOR = re.compile(rf"^\s*(-?)\s*(?:({_NUMBER})\s*\*)?\s*(.+)$", re.DOTALL)
_UNIT = re.compile(r"^(?P<layer>[^\[\]@]+)\[(?P<unit>[^\]]*)\]$")


def parse_objective(text: str) -> Objective:
    """Parse the text form of an objective; names are resolved when it is bound to a model.

    Raises:
        ObjectiveError: the text has none of the forms above.
    """
    if not text.strip():
        raise ObjectiveError("the objective is empty: try 'top', 'class:NAME' or 'LAYER[UNIT]'")
    pieces = re.split(r"\s([+-])\s", text)
    total = _term(pieces[0], text)
    for sign, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        term = _term(piece, text)
        total = total + term if sign == "+" else total - term
    return total


def _term(piece: str, text: str) -> Objective:
    match = _FACTOR.match(piece)
    if match is None:
        raise ObjectiveError(f"objective {text!r} lacks a term: expected A + B with both terms")
    minus, factor, body = match.groups()
    weight = float(factor or 1) * (-1 if minus else 1)
    objective = _single(body.strip())
    return objective if weight == 1 else objective * weight


def _single(text: str) -> Objective:
    if text == "top":
        return top()
    if text.startswith("class:"):
        names = [name.strip() for name in text.removeprefix("class:").split("|")]
        if not all(names):
            raise ObjectiveError(f"{text!r} names no class: expected class:INDEX or class:NAME")
        return class_logit([int(name) if name.isdecimal() else name for name in names])
    if text.isdecimal():
        return class_logit(int(text))
    layer, at, vector = text.partition("@")
    if at:
        return _direction(layer.strip(), vector.strip())
    match = _UNIT.match(text)
    if match:
        return _unit(match["layer"].strip(), match["unit"], text)
    if "[" in text or "]" in text:
        raise ObjectiveError(
            f"{text!r} has an unmatched bracket: expected LAYER[UNIT] or LAYER[UNIT,y,x]"
        )
    if "*" in text:
        raise ObjectiveError(f"{text!r} is not a valid product: expected NUMBER*OBJECTIVE")
    return LayerOrClass(text)


def _unit(layer: str, inside: str, text: str) -> Objective:
    parts = [part.strip() for part in inside.split(",")]
    if len(parts) == 2 and parts[1] in ("centre", "center") and parts[0].isdecimal():
        return neuron(layer, int(parts[0]))
    if len(parts) not in (1, 3) or not all(part.isdecimal() for part in parts):
        raise ObjectiveError(
            f"{text!r} names no unit: expected LAYER[UNIT] or LAYER[UNIT,y,x] in whole numbers"
        )
    numbers = [int(part) for part in parts]
    return channel(layer, numbers[0]) if len(numbers) == 1 else neuron(layer, *numbers)


def _direction(layer: str, vector: str) -> Objective:
    if not vector.startswith("["):
        return load_direction(layer, vector)
    try:
        return direction(layer, json.loads(vector))
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise ObjectiveError(
            f"the direction of {layer!r} is not a list of numbers: {error}"
        ) from None
