"""Shows a warning once, although it is issued for every chunk of a long run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager


def each_warning_once() -> Callable[[], AbstractContextManager[None]]:
    """Return a context that shows a warning only the first time, whatever numbers it holds."""
    seen: set[str] = set()

    @contextmanager
    def once() -> Iterator[None]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        for each in caught:
            text = re.sub(r"\d+", "0", str(each.message))
            if text not in seen:
                seen.add(text)
                warnings.warn_explicit(
                    each.message, each.category, each.filename, each.lineno, source=each.source
                )

    return once
