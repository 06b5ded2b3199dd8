"""Parses the text form of objectives, which command lines, file names and result files use.

============================  =====================================================
``top``                       the model's own prediction
``class:281``, ``281``        a class by index
``class:tiger cat``           a class by name; ``class:3|7|7`` is one per image
``class:road@12,40``          a class at row 12, column 40 of an output (B, K, H, W)
``blocks.4[17]``              channel 17 of a layer
``blocks.4[17,3,5]``          its neuron at row 3, column 5; or ``[17,centre]``
``out[1][3]``                 channel 3 of one of several tensors that a module returns
``blocks.4``                  energy of the layer
``blocks.4@[0.1, 0.3]``       a direction; ``@vector.npy`` on the command line
``0.5*blocks.4[17] - top``    sums and multiples, with spaces around + and -
``class:"Apple - scab"``      a name in quotes, in which no sign has a meaning
============================  =====================================================

Names of classes and layers may hold the signs of this grammar, and only the model knows them. So a
text with signs becomes an `ObjectiveText`, which is read when it is bound to a model.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from timmscope.number_list import is_whole
from timmscope.objectives.algebra import Objective
from timmscope.objectives.kinds import (
    ClassLogit,
    LayerOrClass,
    Top,
    channel,
    class_logit,
    direction,
    load_direction,
    neuron,
    top,
)
from timmscope_registry import LayerNotFound, ObjectiveError

if TYPE_CHECKING:
    from .model import ModelLike

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_FACTOR = re.compile(rf"^\s*(-?)\s*(?:({_NUMBER})\s*\*)?\s*(.+)$", re.DOTALL)
_UNIT = re.compile(r"^(?P<layer>.+)\[(?P<unit>[^\[\]]*)\]$", re.DOTALL)
_CELL = re.compile(r"^(?P<name>.+)@\s*(?P<y>\d{1,18})\s*,\s*(?P<x>\d{1,18})\s*$", re.DOTALL)
_SIGN = re.compile(r"\s([+-])\s")
_QUOTED = re.compile(r'(?<![^\s:|*-])"(?:[^"\\]|\\.)*"(?=\s|$|[|@\[])')
_HIDDEN = re.compile("\ue000(\\d+)\ue001")
_MOST_TERMS = 8
"""A sum of more terms is read in one way only: the number of ways doubles with each sign."""


def parse_objective(text: str, *, files: bool = False) -> Objective:
    """Parse the text form of an objective; names are resolved when it is bound to a model.

    Args:
        text: one of the forms above.
        files: whether ``LAYER@FILE`` may open a file; only for what a user types, because the text
            of a result or a store is from whoever made it.

    Raises:
        ObjectiveError: the text has none of the forms above.
    """
    if not text.strip():
        raise ObjectiveError("the objective is empty: try 'top', 'class:NAME' or 'LAYER[UNIT]'")
    parser = _Parser(text, files)
    error = None
    try:
        usual = parser.usual()
    except ObjectiveError as caught:
        if not parser.may_be_a_name:
            raise
        usual, error = LayerOrClass(text.strip()), caught
    return ObjectiveText(text, usual, error, files) if parser.has_signs else usual


@dataclass(frozen=True)
class ObjectiveText(Objective):
    """A text with signs, which may be parts of names; it equals its usual reading.

    Attributes:
        text: the text.
        usual: the reading in which no name holds a sign.
        error: why there is no such reading; None if there is.
        files: whether the text may open files.
    """

    text: str
    usual: Objective
    error: ObjectiveError | None = field(default=None, compare=False, repr=False)
    files: bool = field(default=False, compare=False, repr=False)

    def __eq__(self, other: object) -> bool:
        mine = self.usual
        return mine == (other.usual if isinstance(other, ObjectiveText) else other)

    def __hash__(self) -> int:
        return hash(self.usual)

    def resolve(self, model: ModelLike) -> Objective:
        """Return the one reading whose names the model has.

        `class:` followed by the name of a class always means that class. Without any reading that
        fits, it is the usual one, whose error then says what is missing.

        Raises:
            ObjectiveError: several readings fit.
        """
        found = _Parser(self.text, self.files).fitting(model)
        if len(found) > 1:
            one, other, *_ = found
            raise ObjectiveError(
                f"{self.text!r} has several meanings for {model.id}, {one} and {other}: put names "
                "in quotes"
            )
        if found:
            return found[0]
        if self.error is not None:
            raise self.error
        return self.usual

    def bind(self, model: ModelLike, images: Tensor | None) -> Objective:
        """Bind the reading that fits the model."""
        return self.resolve(model).bind(model, images)

    @property
    def points(self) -> tuple[str, ...]:
        """The hook points of the usual reading."""
        return self.usual.points

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """Raise `ObjectiveError`: only the bound objective has a value."""
        raise ObjectiveError(f"{self.text!r} must be bound to a model before it has a value")

    @property
    def num_targets(self) -> int | None:
        """The number of targets of the usual reading."""
        return self.usual.num_targets

    def __str__(self) -> str:
        return self.text


class _Parser:
    """Reads one text; quoted names are hidden behind placeholders meanwhile."""

    def __init__(self, text: str, files: bool) -> None:
        self._text = text
        self._files = files
        self._quotes: list[str] = []
        self._hidden = text if _HIDDEN.search(text) else _QUOTED.sub(self._hide, text)
        parts = _SIGN.split(self._hidden)
        self._terms, self._signs = parts[::2], parts[1::2]

    def _hide(self, quoted: re.Match[str]) -> str:
        try:
            self._quotes.append(json.loads(quoted[0]))
        except json.JSONDecodeError:
            return quoted[0]
        return f"\ue000{len(self._quotes) - 1}\ue001"

    def _shown(self, hidden: str) -> str:
        return _HIDDEN.sub(lambda match: json.dumps(self._quotes[int(match[1])]), hidden)

    def _name(self, hidden: str) -> str:
        quoted = _HIDDEN.fullmatch(hidden.strip())
        return self._quotes[int(quoted[1])] if quoted else self._shown(hidden).strip()

    def _target(self, hidden: str) -> int | str:
        name = self._name(hidden)
        if not is_whole(name.removeprefix("-")):
            return name
        return json.dumps(name) if _HIDDEN.search(hidden) else int(name)

    @property
    def has_signs(self) -> bool:
        """Whether the text may have several readings."""
        if self._signs:
            return True
        body = self._hidden.strip()
        if body.startswith("class:"):
            return "|" in body or "@" in body
        return body.startswith("-") or any(sign in body for sign in "*@[")

    @property
    def may_be_a_name(self) -> bool:
        """Whether a text without a usual reading may name a layer such as `w[a]` or `k@v`."""
        closed = self._hidden.count("[") == self._hidden.count("]")
        return closed and ("[" in self._hidden or "@" in self._hidden)

    # The reading in which no name holds a sign

    def usual(self) -> Objective:
        """Read every sign as a sign.

        Raises:
            ObjectiveError: the text has none of the forms.
        """
        total = self._term(self._terms[0])
        for sign, text in zip(self._signs, self._terms[1:], strict=True):
            term = self._term(text)
            total = total + term if sign == "+" else total - term
        return total

    def _term(self, text: str) -> Objective:
        match = _FACTOR.match(text)
        if match is None:
            raise ObjectiveError(
                f"objective {self._text!r} lacks a term: expected A + B with both terms"
            )
        minus, factor, body = match.groups()
        return _scaled(self._single(body.strip()), minus, factor)

    def _single(self, body: str) -> Objective:
        if body.startswith("class:"):
            return self._class(body.removeprefix("class:"))
        if body == "top":
            return top()
        if is_whole(body):
            return class_logit(int(body))
        layer, at, vector = body.partition("@")
        if at:
            return self._direction(layer, vector)
        if _UNIT.match(body):
            return self._unit(body)
        if "[" in body or "]" in body:
            raise ObjectiveError(
                f"{self._shown(body)!r} has an unmatched bracket: expected LAYER[UNIT] or "
                'LAYER[UNIT,y,x]; put a name with a bracket in quotes, as in "w[0]"[3]'
            )
        if "*" in body:
            raise ObjectiveError(
                f"{self._shown(body)!r} is not a valid product: expected NUMBER*OBJECTIVE; put a "
                "name with a * in quotes"
            )
        return LayerOrClass(self._name(body))

    def _class(self, body: str) -> Objective:
        cell = _CELL.match(body)
        if cell:
            return class_logit(self._target(cell["name"]), int(cell["y"]), int(cell["x"]))
        targets = [self._target(name) for name in body.split("|")]
        if not all(target != "" for target in targets):
            shown = f"class:{self._shown(body)}"
            raise ObjectiveError(f"{shown!r} names no class: expected class:INDEX or class:NAME")
        return class_logit(targets)

    def _unit(self, body: str) -> Objective:
        match = _UNIT.match(body)
        assert match is not None, "callers check the form"
        layer, inside = self._name(match["layer"]), match["unit"]
        parts = [part.strip() for part in inside.split(",")]
        if len(parts) == 2 and parts[1] in ("centre", "center") and is_whole(parts[0]):
            return neuron(layer, int(parts[0]))
        if len(parts) not in (1, 3) or not all(map(is_whole, parts)):
            raise ObjectiveError(
                f"{self._shown(body)!r} names no unit: expected LAYER[UNIT] or LAYER[UNIT,y,x] in "
                "whole numbers"
            )
        numbers = [int(part) for part in parts]
        return channel(layer, numbers[0]) if len(numbers) == 1 else neuron(layer, *numbers)

    def _direction(self, layer: str, vector: str) -> Objective:
        layer, vector = self._name(layer), self._name(vector)
        if not vector.startswith("["):
            if not self._files:
                raise ObjectiveError(
                    f"the direction of {layer!r} is {vector!r}: text opens no file in Python; use "
                    f"direction({layer!r}, np.load({vector!r}))"
                )
            return load_direction(layer, vector)
        try:
            return direction(layer, json.loads(vector))
        except (json.JSONDecodeError, RecursionError, TypeError, ValueError) as error:
            raise ObjectiveError(
                f"the direction of {layer!r} is not a list of numbers: {error}"
            ) from None

    # All readings

    def fitting(self, model: ModelLike) -> list[Objective]:
        """Return the readings whose names the model has, each once."""
        count = len(self._terms)
        if count > _MOST_TERMS:
            return []
        whole = self._hidden.strip()
        if whole.startswith("class:"):
            name = self._name(whole.removeprefix("class:"))
            if _fits(ClassLogit((name,)), model):
                return [ClassLogit((name,))]
        fits = {
            (start, stop): list(self._fitting_terms(start, stop, model))
            for start, stop in itertools.combinations(range(count + 1), 2)
        }

        def sums(start: int) -> Iterator[Objective]:
            for stop in range(start + 1, count + 1):
                for term in fits[start, stop]:
                    signed = -term if start and self._signs[start - 1] == "-" else term
                    if stop == count:
                        yield signed
                    else:
                        yield from (signed + rest for rest in sums(stop))

        return list({str(reading): reading for reading in sums(0)}.values())

    def _fitting_terms(self, start: int, stop: int, model: ModelLike) -> Iterator[Objective]:
        """Yield the objectives without a sum that these terms together may be."""
        text = self._terms[start]
        for sign, term in zip(
            self._signs[start : stop - 1], self._terms[start + 1 : stop], strict=True
        ):
            text += f" {sign} {term}"
        scales: list[tuple[str, str | None, str]] = [("", None, text.strip())]
        match = _FACTOR.match(text)
        if match is not None and (match[1] or match[2]):
            scales.append((match[1], match[2], match[3].strip()))
        for minus, factor, body in scales:
            for read in self._readings(body, model):
                try:
                    reading = read()
                except ObjectiveError:
                    continue
                if _fits(reading, model):
                    yield _scaled(reading, minus, factor)

    def _readings(self, body: str, model: ModelLike) -> Iterator[Callable[[], Objective]]:
        if body.startswith("class:"):
            name = self._name(body.removeprefix("class:"))
            if _fits(ClassLogit((name,)), model):
                yield partial(ClassLogit, (name,))
            else:
                yield partial(self._single, body)
            return
        if body == "top" or is_whole(body):
            yield partial(self._single, body)
            return
        yield partial(LayerOrClass, self._name(body))
        if _UNIT.match(body):
            yield partial(self._unit, body)
        for at in (index for index, sign in enumerate(body) if sign == "@"):
            if self._name(body[:at]) in model.layers:  # only then may a file be read
                yield partial(self._direction, body[:at], body[at + 1 :])


def _fits(objective: Objective, model: ModelLike) -> bool:
    """Whether the model has what an objective names."""
    if isinstance(objective, Top):
        return True
    try:
        objective.bind(model, None)
    except (ObjectiveError, LayerNotFound):
        return False
    return True


def _scaled(objective: Objective, minus: str, factor: str | None) -> Objective:
    weight = float(factor or 1) * (-1 if minus else 1)
    return objective if weight == 1 else objective * weight
