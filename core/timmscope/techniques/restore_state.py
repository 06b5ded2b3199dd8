"""Undoes what a technique leaves behind on the model, and names the technique.

Settings of the whole process (torch's default dtype, `sys.stdout`, the working directory …) are
checked by `timmscope.testing` instead, because asking for them at every chunk costs time.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from timmscope.models import HookedModel
from timmscope.techniques.base import Technique, blamed, technique_error
from timmscope_registry.plugin_faults import fault

_NAMED = 5


class StateWarning(UserWarning):
    """A technique left hooks or changes behind; they are undone, and its result stands."""


@contextlib.contextmanager
def restore_state(
    technique: Technique, model: HookedModel | None, weights_sha256: str | None = None
) -> Iterator[None]:
    """Undo afterwards what a technique did to the model.

    Args:
        technique: whose method runs inside.
        model: the model passed to it, if any.
        weights_sha256: of that model, before.

    Warns:
        StateWarning: there was something to undo; the message names the technique and what.

    Raises:
        TechniqueError: weights have other values than before, which cannot be undone.
    """
    if model is None:
        yield
        return
    snapshot = model.hooks.snapshot()
    try:
        yield
    finally:
        removed, changed = model.hooks.restore(snapshot)
        if removed:  # after everything is undone: a warning may be an error
            many = f"{len(removed)} hook(s) behind, on {_few(removed)}"
            _warn(technique, f"left {many}; they were removed")
        if changed:
            _warn(technique, f"changed {', '.join(changed)}; it was put back")
    if written := snapshot.written():
        vars(model).pop("weights_sha256", None)  # kept since it was first asked for
        if weights_sha256 not in (None, model.weights_sha256):
            raise technique_error(
                technique,
                f"wrote into weights of the model, as {_few(written)}",
                advice="load the model again; a technique changes activations, with model.edit",
            )


def _warn(technique: Technique, did: str) -> None:
    warnings.warn(fault(blamed(technique), did), StateWarning, stacklevel=4)


def _few(names: list[str]) -> str:
    each = list(dict.fromkeys(names))
    return ", ".join(each[:_NAMED]) + (" …" if len(each) > _NAMED else "")
