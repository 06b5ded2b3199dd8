"""Measures the cost of each step of the demo, in seconds and memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from timmscope.progress import task


class Cost(NamedTuple):
    """What a step did, its wall-clock time, and the largest resident memory meanwhile, in MiB."""

    title: str
    seconds: float
    peak_mb: float | None


class Clock:
    """Times steps one after another, and shows each one's title as progress."""

    def __init__(self) -> None:
        self.steps: list[Cost] = []
        self._started = time.perf_counter()

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Time the body; a step that fails is not listed."""
        with suppress(OSError):  # on Linux the peak is measured anew, elsewhere since the start
            Path("/proc/self/clear_refs").write_text("5")
        begun = time.perf_counter()
        with task(title, total=1) as advance:
            yield
            advance(1)
        self.steps.append(Cost(title, time.perf_counter() - begun, _peak_mb()))

    def total(self) -> Cost:
        """All steps since the clock was made."""
        peaks = [step.peak_mb for step in self.steps if step.peak_mb is not None]
        return Cost("all of it", time.perf_counter() - self._started, max(peaks, default=None))


def _peak_mb() -> float | None:
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024
    with suppress(ImportError):  # which is missing on Windows
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
    return None
