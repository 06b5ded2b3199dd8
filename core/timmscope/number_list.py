"""Parses numbers, and lists of whole numbers and ranges: `8/255`, `17`, `3,5,9`, `0-31,40`."""

from __future__ import annotations

import re

_WHOLE = re.compile(r"\d{1,18}", re.ASCII)
_PART = re.compile(r"\s*(\d{1,18})(?:\s*-\s*(\d{1,18}))?\s*", re.ASCII)


def is_whole(text: str) -> bool:
    """Return whether text is a whole number without a sign, of at most 18 digits.

    Longer ones mean nothing here, and Python refuses to convert text of thousands of digits.
    """
    return _WHOLE.fullmatch(text) is not None


def number(text: str) -> float:
    """Return the number of a text such as `0.03` or `8/255`.

    Raises:
        ValueError: it is none.
    """
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(text)
    except ZeroDivisionError:
        raise ValueError(f"{text} divides by zero") from None


def number_list(text: str, end: int) -> list[int]:
    """Return every number of a list with ranges once, in the order of the text.

    Args:
        text: the list, as in ``"3,17,100-199"``.
        end: the numbers must be below this.

    Raises:
        ValueError: the text is not such a list, or has a number of `end` or above.
    """
    numbers: dict[int, None] = {}
    for part in text.split(","):
        match = _PART.fullmatch(part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if low > high:
            raise ValueError(f"{part!r} is neither a number nor a range, as in 3,17,100-199")
        if high >= end:
            raise ValueError(f"there is no {high}, expected 0 to {end - 1}")
        numbers.update(dict.fromkeys(range(low, high + 1)))
    return list(numbers)
