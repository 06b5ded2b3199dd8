"""Hooks that a technique forgets are taken away, and its name is told."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from timmscope.models import HookedModel
from timmscope.techniques.base import Technique, named

_NAMED = 5


class LeftoverWarning(UserWarning):
    """A technique left hooks on a model; they are gone, and its result stands."""


@contextlib.contextmanager
def no_leftovers(technique: Technique, model: HookedModel) -> Iterator[None]:
    """Take away the hooks that the model or all modules have afterwards and had not before.

    Warns:
        LeftoverWarning: there were some; the message names the technique and where they were.
    """
    before = model.hooks.others()
    try:
        yield
    finally:
        removed = model.hooks.remove_others(before)
        if removed:
            shown = ", ".join(dict.fromkeys(removed[:_NAMED]))
            warnings.warn(
                f"{named(technique)} left {len(removed)} hook(s) behind, on {shown}"
                f"{' …' if len(removed) > _NAMED else ''}; they were removed: tell its authors",
                LeftoverWarning,
                stacklevel=3,
            )
