"""Lists of numbers as people write them: `17`, `3,5,9`, `0-31,40`."""

from __future__ import annotations

import re

_PART = re.compile(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", re.ASCII)
_MOST = 1 << 20
"""Numbers of one range: a longer one is a slip."""


def number_list(text: str) -> list[int]:
    """Every number of a list with ranges once, in the order given.

    Raises:
        ValueError: it is no such list.
    """
    found: dict[int, None] = {}
    for part in text.split(","):
        match = _PART.fullmatch(part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if low > high or high - low > _MOST:
            raise ValueError(f"{part!r} is neither a number nor a range, as in 3,17,100-199")
        found.update(dict.fromkeys(range(low, high + 1)))
    return list(found)
