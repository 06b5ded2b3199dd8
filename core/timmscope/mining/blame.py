"""Collectors are other people's code: what fails in one is said in one line, with its name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import OutOfMemoryError

from timmscope_registry import PluginError, TimmscopeError

from .collectors import Collector, RowCollector


@contextmanager
def blame(collector: Collector | RowCollector, layer: str, start: int, stop: int) -> Iterator[None]:
    """Turn what a collector raises inside into one line; errors that are one line pass.

    Args:
        collector: the one that is at work.
        layer: the layer whose rows it sees.
        start: id of the first image.
        stop: id after the last.

    Raises:
        PluginError: names the collector, the layer and the images.
    """
    try:
        yield
    except (TimmscopeError, MemoryError, OutOfMemoryError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(
            f"the collector {collector.name} failed in layer {layer}, images {start} to "
            f"{stop - 1} ({reason}); mend it and start again: finished shards are kept"
        ) from error
