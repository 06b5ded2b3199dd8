"""Times two ways of doing the same thing in turn, so that drift of the machine affects both."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

Work = Callable[[], object]


@dataclass(frozen=True)
class Pair:
    """Seconds of ours and of theirs, as medians over alternating runs, and their ratio.

    `ratio` is the median of ours / theirs over pairs of runs; below 1, ours is faster. With another
    `unit`, both are numbers of it.
    """

    name: str
    ours: str
    theirs: str
    ours_s: float
    theirs_s: float
    ratio: float
    runs: int
    unit: str = "s"

    def row(self) -> dict[str, Any]:
        """Return the fields as a dictionary for JSON."""
        return asdict(self)


def compare(
    name: str,
    ours: tuple[str, Work],
    theirs: tuple[str, Work],
    runs: int = 7,
    clock: Callable[[], float] = perf_counter,
) -> Pair:
    """Run ours and theirs in turn, after one warm-up of each."""
    ours[1]()
    theirs[1]()
    seconds = [(seconds_of(ours[1], clock), seconds_of(theirs[1], clock)) for _ in range(runs)]
    return Pair(
        name=name,
        ours=ours[0],
        theirs=theirs[0],
        ours_s=statistics.median(a for a, _ in seconds),
        theirs_s=statistics.median(b for _, b in seconds),
        ratio=statistics.median(a / b for a, b in seconds),
        runs=runs,
    )


def seconds_of(work: Work, clock: Callable[[], float] = perf_counter) -> float:
    """Return the seconds of one run."""
    began = clock()
    work()
    return clock() - began
