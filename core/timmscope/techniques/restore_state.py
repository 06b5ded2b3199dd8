"""Undoes changes that a technique leaves on the model, and warns with the technique's name.

`timmscope.testing` checks settings of the whole process (torch's default dtype, `sys.stdout`, the
working directory …) instead, because checking them at every chunk would cost time.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from functools import partial

from timmscope.models import HookedModel
from timmscope.models.pass_counter import counting_totals
from timmscope.parameters import origin_of, technique_error
from timmscope.techniques.base import Technique
from timmscope.techniques.opening import Openings, openings_of
from timmscope_registry.plugin_faults import fault

_NAMED = 5


class StateWarning(UserWarning):
    """A technique left hooks or changes on the model; they are undone, and its result is valid."""


@contextlib.contextmanager
def restore_state(
    technique: Technique, model: HookedModel | None, weights_sha256: str | None = None
) -> Iterator[None]:
    """Undo, at the end of the context, the changes that a technique makes to models.

    These are the main model and those that its parameters name, whose passes are counted.

    Args:
        technique: technique whose method runs inside.
        model: the model passed to it, if any.
        weights_sha256: hash of the model's weights before.

    Warns:
        StateWarning: something was undone; the message names it and the technique.

    Raises:
        TechniqueError: values of weights changed, which cannot be undone.
    """
    opened = openings_of(technique)
    further = {} if opened is None else opened.further_models(technique)
    with contextlib.ExitStack() as stack:
        for parameter, other in further.items():
            stack.enter_context(_restored(technique, other, parameter, other.weights_sha256))
        if model is not None:
            stack.enter_context(_restored(technique, model, "the model", weights_sha256))
        if opened is not None and further:
            stack.enter_context(_counted(technique, opened, model, further))
        yield


@contextlib.contextmanager
def _restored(
    technique: Technique, model: HookedModel, name: str, weights_sha256: str | None
) -> Iterator[None]:
    """Undo the changes of one model, which errors call by a name."""
    snapshot = model.hooks.snapshot()
    where = "" if name == "the model" else f" of {name}"
    try:
        yield
    finally:
        removed, changed = model.hooks.restore(snapshot)
        if removed:  # warn after everything is undone, because a warning may be an error
            many = f"{len(removed)} hook(s) behind, on {_few(removed)}{where}"
            _warn(technique, f"left {many}; they were removed")
        if changed:
            _warn(
                technique, f"changed {', '.join(changed)}{where and f' ({name})'}; it was restored"
            )
    if written := snapshot.written():
        vars(model).pop("weights_sha256", None)  # drop the cached hash
        if weights_sha256 not in (None, model.weights_sha256):
            raise technique_error(
                technique,
                f"wrote into weights of {name}, as {_few(written)}",
                advice="load the model again; a technique changes activations, with model.edit",
            )


@contextlib.contextmanager
def _counted(
    technique: Technique,
    opened: Openings,
    main: HookedModel | None,
    further: dict[str, HookedModel],
) -> Iterator[None]:
    """Add the passes of further models to those of the call, whoever starts them."""
    names: dict[object, str] = {model._owner: name for name, model in further.items()}
    with contextlib.ExitStack() as stack:
        counter = stack.enter_context(counting_totals(names))
        for model in further.values():
            if main is None or model.module is not main.module:
                watch = partial(counter.watch, owner=model._owner, id=model.id)
                stack.enter_context(model.hooks.count_forwards(watch))
        yield
    opened.add_passes(technique, dict(zip(further, counter.totals.values(), strict=True)))


def _warn(technique: Technique, did: str) -> None:
    warnings.warn(fault(origin_of(technique), did), StateWarning, stacklevel=7)


def _few(names: list[str]) -> str:
    each = list(dict.fromkeys(names))
    return ", ".join(each[:_NAMED]) + (" …" if len(each) > _NAMED else "")
