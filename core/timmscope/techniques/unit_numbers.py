"""Numbers of units as people write them: `17`, `3,5,9`, `0-31`, or in Python a list."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from timmscope_registry import ParameterError

_PART = re.compile(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", re.ASCII)
_MOST = 1 << 20


def _numbers(given: int | str | tuple[int, ...]) -> tuple[int, ...]:
    """Every number once, in the order given.

    Raises:
        ValueError: it is no list of numbers and ranges.
    """
    if isinstance(given, int):
        given = (given,)
    found: dict[int, None] = {}
    for part in given.split(",") if isinstance(given, str) else given:
        if isinstance(part, int):
            low = high = part
        else:
            match = _PART.fullmatch(part)
            low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not 0 <= low <= high or high - low > _MOST:
            raise ValueError(f"{part!r} is neither a number nor a range, as in 3,17,100-199")
        found.update(dict.fromkeys(range(low, high + 1)))
    if not found:
        raise ValueError("it is empty; leave it out for all units")
    return tuple(found)


UnitNumbers = Annotated[int | str | tuple[int, ...], AfterValidator(_numbers)]
"""Which units of a layer: a number, text with ranges as in `3,17,100-199`, or several numbers."""


def chosen_units(units: int | str | tuple[int, ...] | None, layer: str, count: int) -> list[int]:
    """The units of a layer that a field of type `UnitNumbers` chooses; all of them for None.

    Args:
        units: the field.
        layer: name of the layer.
        count: how many units it has.

    Raises:
        ParameterError: the layer has no such unit.
    """
    if units is None:
        return list(range(count))
    chosen = _numbers(units)
    missing = [unit for unit in chosen if unit >= count]
    if missing:
        more = f" nor {len(missing) - 1} more of those named" if len(missing) > 1 else ""
        raise ParameterError(
            f"layer {layer} has units 0 to {count - 1}, there is no unit {missing[0]}{more}",
            parameter="units",
        )
    return list(chosen)
