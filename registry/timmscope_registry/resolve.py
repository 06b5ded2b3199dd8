"""From what somebody typed to what they meant, and from an import string to the object."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable

CUTOFF = 0.6
"""Least share of matching letters at which a name may have been meant."""
SPREAD = 0.15
"""How much worse than the best a further suggestion may be."""


def nearest(name: str, candidates: Iterable[str], n: int = 3) -> list[str]:
    """Return up to `n` candidates that `name` may have meant, best first.

    Names that differ only in case or in ``-``, ``_`` and blanks come first, then those that contain
    what was typed (at least three letters), then those that look alike.
    """
    known = list(dict.fromkeys(candidates))
    folded = {candidate: _fold(candidate) for candidate in known}
    wanted = _fold(name)
    if not wanted:
        return []
    same = [c for c in known if folded[c] == wanted]
    inside = [c for c in known if len(wanted) >= 3 and wanted in folded[c]]
    inside.sort(key=lambda c: (not folded[c].startswith(wanted), len(c)))
    ranked = [*same, *inside[: max(n - 1, 0)], *_alike(wanted, folded), *inside]
    return list(dict.fromkeys(ranked))[:n]


def did_you_mean(name: str, candidates: Iterable[str], n: int = 3) -> str:
    """Return ``"did you mean 'a' or 'b'?"``, or an empty string when nothing resembles `name`."""
    close = [repr(candidate) for candidate in nearest(name, candidates, n)]
    if not close:
        return ""
    return f"did you mean {' or '.join(filter(None, [', '.join(close[:-1]), close[-1]]))}?"


def import_string(path: str) -> object:
    """Import ``"package.module:Attribute"`` and return the attribute (dots go deeper).

    Raises:
        ImportError: the module cannot be imported.
        AttributeError: it has no such attribute; the message names the nearest ones.
        ValueError: `path` has not that form.
    """
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"{path!r} is not of the form 'module:Attribute'")
    found: object = importlib.import_module(module_name)
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            hint = did_you_mean(part, (n for n in dir(found) if not n.startswith("_")))
            message = f"{module_name} has no attribute {attribute!r}"
            raise AttributeError("; ".join(filter(None, [message, hint]))) from error
    return found


def _fold(text: str) -> str:
    return " ".join(text.casefold().replace("_", " ").replace("-", " ").split())


def _alike(wanted: str, folded: dict[str, str]) -> list[str]:
    """Candidates spelt like `wanted`, best first and then in their own order.

    Those that are clearly worse than the best are left out.
    """
    matcher = difflib.SequenceMatcher(b=wanted)
    scores: dict[str, float] = {}
    for candidate, text in folded.items():
        matcher.set_seq1(text)
        if matcher.real_quick_ratio() >= CUTOFF and matcher.quick_ratio() >= CUTOFF:
            scores[candidate] = matcher.ratio()
    floor = max(CUTOFF, max(scores.values(), default=0.0) - SPREAD)
    return sorted((c for c in scores if scores[c] >= floor), key=lambda c: -scores[c])
