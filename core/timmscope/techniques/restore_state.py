"""Undoes changes that a technique leaves on the model, and warns with the technique's name.

`timmscope.testing` checks settings of the whole process (torch's default dtype, `sys.stdout`, the
working directory …) instead, because checking them at every chunk would cost time.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from timmscope.models import HookedModel
from timmscope.parameters import origin_of, technique_error
from timmscope.techniques.base import Technique
from timmscope_registry.plugin_faults import fault

_NAMED = 5


class StateWarning(UserWarning):
    """A technique left hooks or changes on the model; they are undone, and its result is valid."""


@contextlib.contextmanager
def restore_state(
    technique: Technique, model: HookedModel | None, weights_sha256: str | None = None
) -> Iterator[None]:
    """Undo, at the end of the context, the changes that a technique makes to the model.

    Args:
        technique: technique whose method runs inside.
        model: the model passed to it, if any.
        weights_sha256: hash of the model's weights before.

    Warns:
        StateWarning: something was undone; the message names it and the technique.

    Raises:
        TechniqueError: values of weights changed, which cannot be undone.
    """
    if model is None:
        yield
        return
    snapshot = model.hooks.snapshot()
    try:
        yield
    finally:
        removed, changed = model.hooks.restore(snapshot)
        if removed:  # warn after everything is undone, because a warning may be an error
            many = f"{len(removed)} hook(s) behind, on {_few(removed)}"
            _warn(technique, f"left {many}; they were removed")
        if changed:
            _warn(technique, f"changed {', '.join(changed)}; it was restored")
    if written := snapshot.written():
        vars(model).pop("weights_sha256", None)  # drop the cached hash
        if weights_sha256 not in (None, model.weights_sha256):
            raise technique_error(
                technique,
                f"wrote into weights of the model, as {_few(written)}",
                advice="load the model again; a technique changes activations, with model.edit",
            )


def _warn(technique: Technique, did: str) -> None:
    warnings.warn(fault(origin_of(technique), did), StateWarning, stacklevel=4)


def _few(names: list[str]) -> str:
    each = list(dict.fromkeys(names))
    return ", ".join(each[:_NAMED]) + (" …" if len(each) > _NAMED else "")
