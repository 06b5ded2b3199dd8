"""What each step of the demo costs, in seconds and memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from timmscope.progress import task


@dataclass(frozen=True)
class Cost:
    """One step.

    Attributes:
        title: what it did.
        seconds: wall-clock time.
        peak_mb: largest resident memory of this process meanwhile, MiB; None where unknown.
    """

    title: str
    seconds: float
    peak_mb: float | None


@dataclass
class Clock:
    """Times steps one after another, and shows each one's title as progress."""

    steps: list[Cost] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Time the body; a step that fails is not listed."""
        _reset_peak()
        begun = time.perf_counter()
        with task(title, total=1) as advance:
            yield
            advance(1)
        self.steps.append(Cost(title, time.perf_counter() - begun, _peak_mb()))

    def total(self) -> Cost:
        """All steps since the clock was made."""
        peaks = [step.peak_mb for step in self.steps if step.peak_mb is not None]
        return Cost("all of it", time.perf_counter() - self.started, max(peaks, default=None))


def _reset_peak() -> None:
    """Let Linux measure the peak anew; elsewhere it is the peak since the process began."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_mb() -> float | None:
    try:
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    except (OSError, StopIteration, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    units = 1024 * 1024 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units
