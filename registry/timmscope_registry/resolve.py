"""Suggests names for a misspelt one, and imports what an import string names."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable

CUTOFF = 0.6
"""Smallest share of matching letters (difflib's ratio) at which a name is suggested."""
SPREAD = 0.15
"""How far below the best ratio a further suggestion may be."""


def nearest(name: str, candidates: Iterable[str], n: int = 3) -> list[str]:
    """Return up to `n` candidates that `name` may stand for, best first.

    Names that differ only in case or in ``-``, ``_`` and spaces come first, then names that contain
    `name` (of at least three letters), then names of similar spelling.
    """
    folded = {candidate: _fold(candidate) for candidate in candidates}
    wanted = _fold(name)
    if not wanted:
        return []
    equal = [c for c in folded if folded[c] == wanted]
    longer = [c for c in folded if len(wanted) >= 3 and wanted in folded[c]]
    longer.sort(key=lambda c: (not folded[c].startswith(wanted), len(c)))
    ranked = [*equal, *longer[: max(n - 1, 0)], *_similar(wanted, folded), *longer]
    return list(dict.fromkeys(ranked))[:n]


def did_you_mean(name: str, candidates: Iterable[str], n: int = 3) -> str:
    """Return ``"did you mean 'a' or 'b'?"``, or an empty string when nothing resembles `name`."""
    close = [repr(candidate) for candidate in nearest(name, candidates, n)]
    if not close:
        return ""
    return f"did you mean {' or '.join(filter(None, [', '.join(close[:-1]), close[-1]]))}?"


def import_string(path: str) -> object:
    """Import ``"package.module:Attribute"`` and return the attribute.

    Dots after the colon reach nested attributes, as in ``"package.module:Class.method"``.

    Raises:
        ImportError: the module cannot be imported.
        AttributeError: the module has no such attribute; the message suggests similar names.
        ValueError: `path` does not have this form.
    """
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"{path!r} is not of the form 'module:Attribute'")
    value: object = importlib.import_module(module_name)
    for part in attribute.split("."):
        try:
            value = getattr(value, part)
        except AttributeError as error:
            hint = did_you_mean(part, (n for n in dir(value) if not n.startswith("_")))
            message = f"{module_name} has no attribute {attribute!r}"
            raise AttributeError("; ".join(filter(None, [message, hint]))) from error
    return value


def _fold(text: str) -> str:
    return " ".join(text.casefold().replace("_", " ").replace("-", " ").split())


def _similar(wanted: str, folded: dict[str, str]) -> list[str]:
    """Return candidates of similar spelling, best first; ties keep their order.

    Candidates more than `SPREAD` below the best are left out.
    """
    matcher = difflib.SequenceMatcher(b=wanted)
    scores: dict[str, float] = {}
    for candidate, text in folded.items():
        matcher.set_seq1(text)
        if matcher.real_quick_ratio() >= CUTOFF and matcher.quick_ratio() >= CUTOFF:
            scores[candidate] = matcher.ratio()
    floor = max(CUTOFF, max(scores.values(), default=0.0) - SPREAD)
    return sorted((c for c in scores if scores[c] >= floor), key=lambda c: -scores[c])
