"""Reads the text form of objectives: the usual reading of a text, or all that fit a model.

The forms are listed in `timmscope.objectives.text`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from timmscope.number_list import is_whole
from timmscope.objectives.algebra import Objective
from timmscope.objectives.class_objectives import (
    ClassLogit,
    LayerOrClass,
    Softmax,
    Top,
    class_logit,
    log_probability,
    probability,
    top,
)
from timmscope.objectives.each import each, interpolate
from timmscope.objectives.guide import guide
from timmscope.objectives.layer_objectives import (
    channel,
    cosine,
    direction,
    load_direction,
    neuron,
)
from timmscope.objectives.match import Distance, Match, check_digests, load_match, match
from timmscope_registry import LayerNotFound, ObjectiveError

if TYPE_CHECKING:
    from .model import ModelLike

_EACH = re.compile(r"^\s*(?P<name>each|interpolate)\((?P<inside>.*)\)\s*$", re.DOTALL)
_COSINE = re.compile(r"^(?P<of>.*?@.*?)(?:,\s*(?P<power>[\d.]+))?$", re.DOTALL)
_UNITS = re.compile(r"^\s*\d{1,18}(?:\s*[|-]\s*\d{1,18})+\s*$")
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_FACTOR = re.compile(rf"^\s*(-?)\s*(?:({_NUMBER})\s*\*)?\s*(.+)$", re.DOTALL)
_UNIT = re.compile(r"^(?P<layer>.+)\[(?P<unit>[^\[\]]*)\]$", re.DOTALL)
_CELL = re.compile(r"^(?P<name>.+)@\s*(?P<y>\d{1,18})\s*,\s*(?P<x>\d{1,18})\s*$", re.DOTALL)
_SIGN = re.compile(r"\s([+-])\s")
_FUNCTION = re.compile(r"^(?P<name>p|logp|match|guide|cosine)\((?P<inside>.*)\)$", re.DOTALL)
_TARGETS = re.compile(
    r"^(?P<targets>.*?)(?P<options>(?:\s*,\s*(?:cosine|squared|pooled))*)\s*$", re.DOTALL
)
_TARGET = re.compile(r"^(?P<name>.*?)(?:#(?P<digest>[0-9a-f]{16}))?$", re.DOTALL)
_ROW = re.compile(r"^(?P<store>.+)\[(?P<row>\d{1,18})\]$", re.DOTALL)
_QUOTED = re.compile(r'(?<![^\s:|*(@-])"(?:[^"\\]|\\.)*"(?=\s|$|[|@\[),#])')
_HIDDEN = re.compile("\ue000(\\d+)\ue001")
_MOST_UNITS = 100_000
_MOST_TERMS = 8
"""A sum of more terms is read in one way only: the number of ways doubles with each sign."""


RowReader = Callable[[str, str, Sequence[int], Distance], Objective]
"""Makes a match objective of rows of a store, from its path, a layer, image ids, a distance."""


class Parser:
    """Reads one text; quoted names are hidden behind placeholders meanwhile.

    Args:
        text: the text.
        files: whether it may open files.
        rows: reads rows of a store that the text names; by default it can name none.
    """

    def __init__(self, text: str, files: bool, rows: RowReader | None = None) -> None:
        self._text = text
        self._files = files
        self._rows = rows
        self._quotes: list[str] = []
        self._hidden = text if _HIDDEN.search(text) else _QUOTED.sub(self._hide, text)
        whole = _EACH.match(self._hidden)
        self._each = None if whole is None else self._parts_of_each(whole)
        parts = _SIGN.split(self._hidden) if self._each is None else [self._hidden]
        self._terms, self._signs = parts[::2], parts[1::2]

    def _parts_of_each(self, whole: re.Match[str]) -> _PartsOfEach:
        texts = [self._shown(part) for part in whole["inside"].split(";")]
        count = None
        if whole["name"] == "interpolate" and len(texts) == 3 and is_whole(texts[2].strip()):
            count = int(texts.pop())
        if whole["name"] == "interpolate" and len(texts) != 2:
            raise ObjectiveError(
                f"{self._text!r} has {len(texts)} objectives: expected interpolate(A; B; COUNT)"
            )
        if not all(text.strip() for text in texts):
            raise ObjectiveError(f"{self._text!r} lacks an objective: expected each(A; B; …)")
        parsers = [Parser(text, self._files, self._rows) for text in texts]
        return _PartsOfEach(whole["name"], parsers, count)

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
        if self._signs or self._each is not None:
            return True
        body = self._hidden.strip()
        if body.startswith("class:"):
            return "|" in body or "@" in body
        if _FUNCTION.match(body):
            return True
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
        if self._each is not None:
            return self._each.of([parser.usual() for parser in self._each.parsers])
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
        function = _FUNCTION.match(body)
        if function is not None:
            return self._function(function["name"], function["inside"].strip())
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

    def _function(self, name: str, inside: str) -> Objective:
        if name == "cosine":
            return self._cosine(inside)
        if name in ("match", "guide"):
            layer, at, target = inside.partition("@")
            if not at:
                other = " or match(LAYER@[0.1, 0.3])" if name == "match" else ""
                raise ObjectiveError(
                    f"{name}({self._shown(inside)}) names no target: expected {name}(LAYER@FILE)"
                    f"{other}"
                )
            read = self._match if name == "match" else self._guide
            if "|" in layer:
                return each(*(read(part, target) for part in layer.split("|")))
            return read(layer, target)
        if inside == "top" or is_whole(inside):
            return _softmax(name, self._single(inside))
        return _softmax(name, self._class(inside.removeprefix("class:")))

    def _match(self, layer: str, target: str) -> Objective:
        found = _TARGETS.match(target)
        assert found is not None, "every text has this form"
        layer, text = self._name(layer), found["targets"].strip()
        options = re.findall(r"\w+", found["options"])
        distance: Distance = "cosine" if "cosine" in options else "squared"
        if text.startswith("["):
            try:
                vector = json.loads(text)
            except (json.JSONDecodeError, RecursionError) as error:
                raise ObjectiveError(
                    f"the target of match at {layer!r} is not a list of numbers: {error}"
                ) from None
            return match(layer, vector=vector, distance=distance)
        names, digests = self._files_named("match", layer, text, "images=…) or match(…, vector=…)")
        made = self._stored_rows(layer, names, distance)
        if made is None:
            made = load_match(layer, names, distance=distance, pooled="pooled" in options)
        check_digests(made, digests)
        return made

    def _guide(self, layer: str, target: str) -> Objective:
        layer = self._name(layer)
        names, digests = self._files_named("guide", layer, target, "images=…)")
        made = guide(layer, images=names)
        check_digests(made, digests)
        return made

    def _files_named(
        self, function: str, layer: str, text: str, in_python: str
    ) -> tuple[list[str], list[str]]:
        """Return the names of files in a text, and their digests.

        Raises:
            ObjectiveError: it names none, or may open no file.
        """
        parts = [_TARGET.match(part.strip()) for part in text.split("|")]
        names = [self._name(part["name"]) for part in parts if part is not None]
        digests = [part["digest"] or "" for part in parts if part is not None]
        if not all(names):
            raise ObjectiveError(
                f"{function}({self._shown(layer)}@{self._shown(text)}) does not hold its target: "
                f"give it in Python as {function}({layer!r}, {in_python}"
            )
        if not self._files:
            raise ObjectiveError(
                f"the target of {function} at {layer!r} is {names[0]!r}: text opens no file in "
                f"Python; use {function}({layer!r}, images={names[0]!r})"
            )
        return names, digests

    def _stored_rows(self, layer: str, names: list[str], distance: Distance) -> Objective | None:
        """Return the objective of names such as `photos.scope[17]`; None if they are files."""
        rows = [found for name in names if (found := _ROW.match(name))]
        if self._rows is None or len(rows) < len(names):
            return None
        stores = sorted({row["store"] for row in rows})
        if stores[0].lower().endswith(".npy"):
            return None
        if len(stores) > 1:
            raise ObjectiveError(
                f"match at {layer!r} has rows of {' and of '.join(stores)}: name rows of one store"
            )
        return self._rows(stores[0], layer, [int(row["row"]) for row in rows], distance)

    def _unit(self, body: str) -> Objective:
        match = _UNIT.match(body)
        assert match is not None, "callers check the form"
        layer, inside = self._name(match["layer"]), match["unit"]
        if _UNITS.match(inside):
            return each(*(channel(layer, unit) for unit in _unit_numbers(inside)))
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

    def _cosine(self, inside: str) -> Objective:
        found = _COSINE.match(inside)
        if found is None:
            raise ObjectiveError(
                f"cosine({self._shown(inside)}) names no direction: expected cosine(LAYER@[0.1, "
                "0.3]), or cosine(LAYER@FILE.npy) on the command line"
            )
        layer, _, vector = found["of"].partition("@")
        power = None if found["power"] is None else float(found["power"])
        return cosine(self._name(layer), self._vector(layer, vector), power)

    def _direction(self, layer: str, vector: str) -> Objective:
        return direction(self._name(layer), self._vector(layer, vector))

    def _vector(self, layer: str, vector: str) -> Any:
        """Return the numbers of a direction, from its text or a file."""
        layer, vector = self._name(layer), self._name(vector)
        if not vector.startswith("["):
            if not self._files:
                raise ObjectiveError(
                    f"the direction of {layer!r} is {vector!r}: text opens no file in Python; use "
                    f"direction({layer!r}, np.load({vector!r}))"
                )
            return load_direction(vector)
        try:
            return json.loads(vector)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ObjectiveError(
                f"the direction of {layer!r} is not a list of numbers: {error}"
            ) from None

    # All readings

    def fitting(self, model: ModelLike) -> list[Objective]:
        """Return the readings whose names the model has, each once."""
        if self._each is not None:
            readings = [parser.fitting(model) for parser in self._each.parsers]
            found = [self._each.of(list(chosen)) for chosen in itertools.product(*readings)]
            return list({str(reading): reading for reading in found}.values())
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
            yield self._class_reading(body.removeprefix("class:"), model)
            return
        if body == "top" or is_whole(body):
            yield partial(self._single, body)
            return
        yield partial(LayerOrClass, self._name(body))
        function = _FUNCTION.match(body)
        if function is not None:
            name, inside = function["name"], function["inside"].strip()
            if name in ("match", "guide"):
                read_target = self._match if name == "match" else self._guide
                for layer, target in self._layers_before_at(inside, model):
                    yield partial(read_target, layer, target)
            elif name == "cosine" or inside == "top" or is_whole(inside):
                yield partial(self._function, name, inside)
            else:
                read = self._class_reading(inside.removeprefix("class:"), model)
                yield lambda: _softmax(name, read())
            return
        if _UNIT.match(body):
            yield partial(self._unit, body)
        for layer, vector in self._layers_before_at(body, model):
            yield partial(self._direction, layer, vector)

    def _class_reading(self, body: str, model: ModelLike) -> Callable[[], Objective]:
        """Return how to read what is behind `class:`; a class of that whole name comes first."""
        name = self._name(body)
        if _fits(ClassLogit((name,)), model):
            return partial(ClassLogit, (name,))
        return partial(self._class, body)

    def _layers_before_at(self, body: str, model: ModelLike) -> Iterator[tuple[str, str]]:
        """Yield what is before and after an @ behind a layer; only then may a file be read."""
        for at in (index for index, sign in enumerate(body) if sign == "@"):
            if self._name(body[:at]) in model.layers:
                yield body[:at], body[at + 1 :]


@dataclass(frozen=True)
class _PartsOfEach:
    """What is inside `each(…)` or `interpolate(…)`."""

    name: str
    parsers: list[Parser]
    count: int | None

    def of(self, objectives: list[Objective]) -> Objective:
        """The objective of one reading of each part."""
        if self.name == "each":
            return each(*objectives)
        first, second = objectives
        return interpolate(first, second, *(() if self.count is None else (self.count,)))


def _unit_numbers(text: str) -> list[int]:
    """Return the units of a text such as `3|7|10-12`."""
    units: list[int] = []
    for part in text.split("|"):
        first, _, last = part.partition("-")
        units += range(int(first), int(last or first) + 1)
    if not 0 < len(units) <= _MOST_UNITS:
        raise ObjectiveError(f"{text!r} names {len(units)} units: expected 1 to {_MOST_UNITS}")
    return units


def _softmax(function: str, of: Objective) -> Objective:
    return log_probability(of) if function == "logp" else probability(of)


def _fits(objective: Objective, model: ModelLike) -> bool:
    """Whether the model has what an objective names."""
    if isinstance(objective, Softmax):
        objective = objective.of
    if isinstance(objective, Top):
        return True
    if isinstance(objective, Match):
        return objective.layer in model.layers
    try:
        objective.bind(model, None)
    except (ObjectiveError, LayerNotFound):
        return False
    return True


def _scaled(objective: Objective, minus: str, factor: str | None) -> Objective:
    weight = float(factor or 1) * (-1 if minus else 1)
    return objective if weight == 1 else objective * weight
