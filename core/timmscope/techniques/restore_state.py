"""What a technique leaves behind is taken away or put back, and its name is told."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from timmscope.models import HookedModel
from timmscope.techniques.base import Technique, named
from timmscope_registry import TechniqueError

_NAMED = 5


def _folder() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 (as text, which it is compared by)
    except OSError:  # it was deleted
        return "."


_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": (
        torch.get_default_device,
        lambda device: torch.set_default_device(None if device.type == "cpu" else device),
    ),
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's determinism": (
        torch.get_deterministic_debug_mode,
        torch.set_deterministic_debug_mode,
    ),
    "torch's anomaly detection": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "sys.stdout": (lambda: sys.stdout, lambda stream: setattr(sys, "stdout", stream)),
    "sys.stderr": (lambda: sys.stderr, lambda stream: setattr(sys, "stderr", stream)),
    "the working directory": (_folder, os.chdir),
}
"""What belongs to the whole process: how to ask for it, and how to set it."""


class StateWarning(UserWarning):
    """A technique left hooks or changes behind; they are undone, and its result stands."""


@contextlib.contextmanager
def restore_state(
    technique: Technique, model: HookedModel | None, weights_sha256: str | None = None
) -> Iterator[None]:
    """Undo afterwards what a technique did to the model and to the process's settings.

    Args:
        technique: whose method runs inside.
        model: what it was lent, if anything.
        weights_sha256: of that model, before.

    Warns:
        StateWarning: there was something to undo; the message names the technique and what.

    Raises:
        TechniqueError: weights have other values than before, which cannot be undone.
    """
    settings = {name: read() for name, (read, _) in _SETTINGS.items()}
    snapshot = model.hooks.snapshot() if model is not None else None
    try:
        yield
    finally:
        removed: list[str] = []
        changed: list[str] = []
        if model is not None and snapshot is not None:
            removed, changed = model.hooks.restore(snapshot)
        for name, (read, write) in _SETTINGS.items():
            if read() != settings[name]:
                write(settings[name])
                changed.append(name)
        if removed:  # told when all is undone: a warning may be an error
            _warn(
                f"{named(technique)} left {len(removed)} hook(s) behind, on {_few(removed)}; "
                "they were removed"
            )
        if changed:
            _warn(f"{named(technique)} changed {', '.join(changed)}; it was put back")
    if model is not None and snapshot is not None and (written := snapshot.written()):
        vars(model).pop("weights_sha256", None)  # kept since it was first asked for
        if weights_sha256 not in (None, model.weights_sha256):
            raise TechniqueError(
                f"{named(technique)} wrote into weights of the model, as {_few(written)}: "
                "load the model again; a technique changes activations, with model.edit"
            )


def _warn(what: str) -> None:
    warnings.warn(f"{what}: tell its authors", StateWarning, stacklevel=4)


def _few(names: list[str]) -> str:
    each = list(dict.fromkeys(names))
    return ", ".join(each[:_NAMED]) + (" …" if len(each) > _NAMED else "")
