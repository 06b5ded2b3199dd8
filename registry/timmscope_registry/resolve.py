"""From what somebody typed to what they meant, and from an import string to the object."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable


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
    by_fold: dict[str, list[str]] = {}
    for candidate in known:
        by_fold.setdefault(folded[candidate], []).append(candidate)
    alike = difflib.get_close_matches(wanted, by_fold, n=n, cutoff=0.6)
    ranked = [*same, *_first(inside, n - 1), *(c for key in alike for c in by_fold[key]), *inside]
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


def _first(items: list[str], n: int) -> list[str]:
    return items[: max(n, 0)]
