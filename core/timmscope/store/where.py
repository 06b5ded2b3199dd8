"""Evaluates conditions on images, such as ``label == 'dog' and width > 300``.

A condition is an expression in Python's syntax that may hold only comparisons, ``and``, ``or``,
``not``, names of columns and constants. It is parsed with `ast`, checked once, and never evaluated
by Python. It is then applied to columns as NumPy arrays, block by block, so memory does not grow
with the number of images.

A missing value (no label, the width of an unreadable image, no row in the metadata) is ``None``: it
equals only ``None``, and is neither smaller nor larger than anything.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from timmscope.images.tables import encode
from timmscope_registry import ParameterError, did_you_mean

Kind = Literal["number", "text", "bool", "none"]


class Values(NamedTuple):
    """One column of a block of images.

    Attributes:
        values: (n,) numbers, UTF-8 bytes (NumPy's ``S``) or bool; or one constant.
        missing: (n,) bool, True where there is no value; None if no value is missing.
    """

    values: np.ndarray
    missing: np.ndarray | None = None


Block: TypeAlias = Mapping[str, Values]
Predicate: TypeAlias = Callable[[Block], np.ndarray]

_SYNTAX = (
    "comparisons (== != < <= > >= in), and, or, not, names of columns, text in quotes, numbers"
)
_CONSTANTS = {"none": None, "null": None, "true": True, "false": False}
_COMPARISONS: dict[type[ast.cmpop], Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    ast.Eq: operator.eq,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_KIND_NAMES: dict[Kind, str] = {
    "number": "a number",
    "text": "text",
    "bool": "true or false",
    "none": "None",
}


class _Operand(NamedTuple):
    kind: Kind
    read: Callable[[Block], Values]
    shown: str


class Condition:
    """A condition, checked against the columns that exist.

    Args:
        text: the expression.
        kinds: the kind of every column, by name.

    Attributes:
        columns: names of the columns that it reads.

    Raises:
        ParameterError: the text is not a condition, names an unknown column, or compares a number
            with text; the message says at which character.
    """

    def __init__(self, text: str, kinds: Mapping[str, Kind]) -> None:
        self.text = " ".join(text.split("\n")).strip()
        self._kinds = kinds
        self._used: dict[str, None] = {}
        try:
            self._predicate = self._condition(self._parse())
        except RecursionError:
            raise self._error("it is nested too deeply") from None
        self.columns = tuple(self._used)

    def __call__(self, block: Block, count: int) -> np.ndarray:
        """Return whether each of `count` images meets it, (count,) bool; `block` has `columns`."""
        return np.broadcast_to(self._predicate(block), (count,))

    # --- parsing the text ---------------------------------------------------------------------

    def _parse(self) -> ast.expr:
        if not self.text:
            raise self._error("it is empty, expected as in \"label == 'dog' and width > 300\"")
        if "\0" in self.text:
            raise self._error("text cannot hold the character of code 0")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python warns of `is` with a literal
                return ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            at = error.offset or len(self.text) + 1
            if error.offset and self.text[at - 1 : at] == "=":
                reason = "one = is not a comparison, write =="
            elif at > len(self.text):
                reason = f"it ends too early; expected {_SYNTAX}"
            else:
                reason = f"{error.msg.partition('. ')[0]}; expected {_SYNTAX}"
            raise self._error(f"at character {at}: {reason}") from None
        except (ValueError, MemoryError):  # Python also raises these for thousands of brackets
            raise self._error("it is nested too deeply") from None

    def _condition(self, node: ast.expr) -> Predicate:
        """Convert an expression that is true or false for every image."""
        if isinstance(node, ast.BoolOp):
            parts = [self._condition(value) for value in node.values]
            operation = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            return lambda block: _combine(operation, parts, block)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self._condition(node.operand)
            return lambda block: np.logical_not(inner(block))
        if isinstance(node, ast.Compare):
            return self._chain(node)
        operand = self._operand(node)
        if operand.kind != "bool":
            raise self._error(
                f"{operand.shown} is {_KIND_NAMES[operand.kind]}: compare it with something", node
            )

        def predicate(block: Block) -> np.ndarray:
            column = operand.read(block)
            return _false_if_missing(column.values, column)

        return predicate

    def _chain(self, node: ast.Compare) -> Predicate:
        terms = [node.left, *node.comparators]
        pairs = [
            self._membership(left, op, right)
            if isinstance(op, ast.In | ast.NotIn)
            else self._comparison(left, op, right)
            for left, op, right in zip(terms, node.ops, terms[1:], strict=False)
        ]
        return lambda block: _combine(np.logical_and, pairs, block)

    def _comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Predicate:
        a, b = self._operand(left), self._operand(right)
        if isinstance(op, ast.Is | ast.IsNot):
            if b.kind not in ("none", "bool"):
                raise self._error("`is` is for None: use == and != for values", right)
            op = ast.Eq() if isinstance(op, ast.Is) else ast.NotEq()
        if isinstance(op, ast.NotEq):  # also true where a value is missing
            equal = self._comparison_of(a, ast.Eq(), b, right)
            return lambda block: np.logical_not(equal(block))
        return self._comparison_of(a, op, b, right)

    def _comparison_of(self, a: _Operand, op: ast.cmpop, b: _Operand, right: ast.expr) -> Predicate:
        """Convert any comparison except `is` and `!=`."""
        if "none" in (a.kind, b.kind):
            if not isinstance(op, ast.Eq):
                raise self._error("None is neither smaller nor larger than anything", right)
            other = a if b.kind == "none" else b
            return lambda block: _is_missing(other, block)
        if a.kind != b.kind:
            hint = ""
            if {a.kind, b.kind} == {"text", "number"}:
                hint = "; text stands in quotes, numbers do not"
            raise self._error(
                f"{a.shown} is {_KIND_NAMES[a.kind]} and {b.shown} is {_KIND_NAMES[b.kind]}{hint}",
                right,
            )
        if a.kind == "bool" and not isinstance(op, ast.Eq):
            raise self._error(f"{a.shown} is true or false: use == or !=", right)
        compare = _COMPARISONS[type(op)]

        def predicate(block: Block) -> np.ndarray:
            x, y = a.read(block), b.read(block)
            return _false_if_missing(compare(x.values, y.values), x, y)

        return predicate

    def _membership(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Predicate:
        a = self._operand(left)
        if isinstance(right, ast.List | ast.Tuple | ast.Set):
            inside = self._in_list(a, right.elts)
        else:
            b = self._operand(right)
            if b.kind != "text" or a.kind != "text":
                raise self._error(
                    "`in` takes a list, as in label in ['cat', 'dog'], or finds text in text, as "
                    "in 'cat' in path",
                    right,
                )

            def inside(block: Block) -> np.ndarray:
                x, y = a.read(block), b.read(block)
                return _false_if_missing(np.char.find(y.values, x.values) >= 0, x, y)

        if isinstance(op, ast.In):
            return inside
        return lambda block: np.logical_not(inside(block))

    def _in_list(self, a: _Operand, elements: Sequence[ast.expr]) -> Predicate:
        wanted: list[object] = []
        for item in elements:
            value = self._constant(item)
            if value is None:
                continue
            if _kind_of(value) != a.kind:
                raise self._error(
                    f"{a.shown} is {_KIND_NAMES[a.kind]}, {ast.unparse(item)} in the list is not",
                    item,
                )
            wanted.append(value)
        with_none = len(wanted) < len(elements)
        options = _array(wanted, a.kind)

        def inside(block: Block) -> np.ndarray:
            x = a.read(block)
            found = _false_if_missing(np.isin(x.values, options), x)
            return np.logical_or(found, _is_missing(a, block)) if with_none else found

        return inside

    def _operand(self, node: ast.expr) -> _Operand:
        if isinstance(node, ast.Name) and node.id.lower() not in _CONSTANTS:
            name = node.id
            kind = self._kinds.get(name)
            if kind is None:
                parts = [
                    f"there is no column {name!r}",
                    did_you_mean(name, self._kinds),
                    f"the columns are {', '.join(self._kinds)}; text stands in quotes",
                ]
                raise self._error("; ".join(filter(None, parts)), node)
            self._used[name] = None
            return _Operand(kind, lambda block: block[name], name)
        value = self._constant(node)
        kind = _kind_of(value)
        array = Values(np.asarray(False) if value is None else _array([value], kind)[0])
        return _Operand(kind, lambda block: array, ast.unparse(node))

    def _constant(self, node: ast.expr) -> object:
        """Return a constant: None, a bool, a number or text."""
        if isinstance(node, ast.Constant) and isinstance(
            node.value, bool | int | float | str | None
        ):
            return node.value.rstrip("\0") if isinstance(node.value, str) else node.value
        if isinstance(node, ast.Name) and node.id.lower() in _CONSTANTS:
            return _CONSTANTS[node.id.lower()]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            value = self._constant(node.operand)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.Name):
            raise self._error(f"{node.id} is not a constant: a list holds text and numbers", node)
        hint = ""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
            hint = ", and `and`, `or` instead of & and |"
        shown = ast.unparse(node)
        shown = shown if len(shown) <= 40 else f"{shown[:37]}…"
        raise self._error(f"{shown!r} is not understood; use {_SYNTAX}{hint}", node)

    def _error(self, reason: str, node: ast.expr | None = None) -> ParameterError:
        place = ""
        if node is not None:
            before = self.text.encode()[: node.col_offset]  # ast counts bytes
            place = f"at character {len(before.decode(errors='ignore')) + 1}: "
        shown = self.text if len(self.text) <= 200 else f"{self.text[:200]}…"
        return ParameterError(f"where {shown!r}: {place}{reason}", parameter="where")


def _kind_of(value: object) -> Kind:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "bool"
    return "text" if isinstance(value, str) else "number"


def _array(values: Sequence[object], kind: Kind) -> np.ndarray:
    if kind == "text":
        return np.array([encode(str(value)) for value in values] or [b""], dtype=np.bytes_)[
            : len(values)
        ]
    if kind == "bool":
        return np.array(values, dtype=bool)
    integers = all(isinstance(v, int) and abs(v) < 1 << 62 for v in values)
    return np.array(values, dtype=np.int64 if integers and values else np.float64)


def _combine(operation: np.ufunc, parts: Sequence[Predicate], block: Block) -> np.ndarray:
    result = parts[0](block)
    for part in parts[1:]:
        result = operation(result, part(block))
    return result


def _false_if_missing(result: np.ndarray, *columns: Values) -> np.ndarray:
    """Set the result to False where one of the columns has no value."""
    for column in columns:
        if column.missing is not None:
            result = np.logical_and(result, np.logical_not(column.missing))
    return result


def _is_missing(operand: _Operand, block: Block) -> np.ndarray:
    if operand.kind == "none":
        return np.asarray(True)
    missing = operand.read(block).missing
    return np.asarray(False) if missing is None else missing
