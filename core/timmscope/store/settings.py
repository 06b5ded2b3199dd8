"""Refuses to resume a run in the folder of another one, and shows in which settings they differ."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timmscope_registry import StoreMismatch

_SHOWN, _LONGEST = 6, 60


def require_same_settings(
    folder: Path, what: str, known: dict[str, Any], wanted: dict[str, Any]
) -> None:
    """Refuse settings that differ from those of the run in a folder.

    Args:
        folder: the folder.
        what: what it holds, as in `a training`.
        known: the settings of the run that it holds, as JSON values.
        wanted: the settings of this run.

    Raises:
        StoreMismatch: they differ; the message shows the differences.
    """
    found = list(differences(known, wanted))
    if found:
        shown = "; ".join(found[:_SHOWN]) + (" …" if len(found) > _SHOWN else "")
        raise StoreMismatch(
            f"{folder} holds {what} with other settings ({shown}): repeat them to resume it, or "
            "choose another folder",
            differences=found,
        )


def differences(known: Any, wanted: Any, name: str = "") -> Iterator[str]:
    """Yield a text for each difference of two JSON values, as in `epochs: 2 → 3`."""
    if isinstance(known, dict) and isinstance(wanted, dict):
        for key in dict.fromkeys([*known, *wanted]):
            inner = key if name in ("", "parameters") else f"{name}.{key}"
            yield from differences(known.get(key), wanted.get(key), inner)
    elif known != wanted:
        yield f"{name}: {_brief(known)} → {_brief(wanted)}"


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
