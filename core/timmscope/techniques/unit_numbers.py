"""Parses numbers of units: `17`, `3,5,9`, `0-31`, or in Python a list."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from timmscope.number_list import number_list
from timmscope_registry import ParameterError

_END = 1 << 20
"""Upper bound of unit numbers; no layer has as many units."""


def _numbers(given: int | str | tuple[int, ...]) -> tuple[int, ...]:
    """Return every number once, in the given order.

    Raises:
        ValueError: it is not a list of numbers and ranges.
    """
    if isinstance(given, int):
        given = (given,)
    numbers = number_list(given, _END) if isinstance(given, str) else list(dict.fromkeys(given))
    if not numbers:
        raise ValueError("it is empty; leave it out for all units")
    if min(numbers) < 0:
        raise ValueError(f"{min(numbers)} is neither a number nor a range of units")
    return tuple(numbers)


UnitNumbers = Annotated[int | str | tuple[int, ...], AfterValidator(_numbers)]
"""Units of a layer: a number, a text with ranges such as `3,17,100-199`, or several numbers."""


def chosen_units(units: int | str | tuple[int, ...] | None, layer: str, count: int) -> list[int]:
    """Return the units of a layer that a field of type `UnitNumbers` selects; None selects all.

    Args:
        units: value of the field.
        layer: name of the layer.
        count: number of its units.

    Raises:
        ParameterError: the layer has no such unit.
    """
    if units is None:
        return list(range(count))
    chosen = _numbers(units)
    missing = [unit for unit in chosen if unit >= count]
    if missing:
        more = f"; {len(missing) - 1} more of the given units do not exist" if missing[1:] else ""
        raise ParameterError(
            f"layer {layer} has units 0 to {count - 1}, there is no unit {missing[0]}{more}",
            parameter="units",
        )
    return list(chosen)
