"""Remembers which stores a user trusts to open the model and the images that they record.

A store is data from whoever made it: its model may be a download, and its images any folder. So
`mine` and `merge` note the stores that they make in a file of the user, and what another store
records is opened only if the user trusts it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from timmscope.safe_files import read_regular

log = logging.getLogger("timmscope.trust")

VARIABLE = "TIMMSCOPE_TRUST"
"""Names the folders whose stores are trusted, separated as in ``PATH``."""

_MOST_BYTES = 1 << 26

Ask = Callable[[Path, str], bool]
"""Says whether a user trusts a folder to open what the text says."""

_ask: ContextVar[Ask] = ContextVar("timmscope_ask", default=lambda folder, wanted: False)


def remember(digest: str) -> None:
    """Trust stores of this digest, wherever they are, from now on.

    If the user's folder cannot be written to, a warning says so; the store is asked about later.
    """
    try:
        if digest not in _remembered():
            _file().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _file().open("a", encoding="ascii") as lines:
                lines.write(f"{digest}\n")
    except (OSError, RuntimeError) as error:  # it cannot be written, or there is no home
        log.warning(
            "cannot note that this store is yours (%s): set XDG_STATE_HOME to a folder that can be "
            "written to, or %s to the folder of your stores",
            error,
            VARIABLE,
        )


def is_known(folder: Path, digest: str) -> bool:
    """Whether the user trusts a store already: by its digest, or by the folder that it lies in."""
    places = filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))
    return digest in _remembered() or any(
        folder.resolve().is_relative_to(Path(place).resolve()) for place in places
    )


def is_trusted(folder: Path, digest: str, wanted: str) -> bool:
    """Whether the user trusts a store, now that there may be someone to ask; a yes is remembered.

    Args:
        folder: the store.
        digest: digest of what the store records.
        wanted: what it wants to open, in words.
    """
    if is_known(folder, digest):
        return True
    if trusted := _ask.get()(folder, wanted):
        remember(digest)
    return trusted


@contextmanager
def asking(ask: Ask) -> Iterator[None]:
    """Ask a function about stores that are not trusted, inside a ``with`` block."""
    token = _ask.set(ask)
    try:
        yield
    finally:
        _ask.reset(token)


def _file() -> Path:
    home = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return Path(home) / "timmscope" / "stores"


def _remembered() -> set[str]:
    try:
        return set(read_regular(_file(), _MOST_BYTES).decode("ascii", "replace").split())
    except (OSError, ValueError, RuntimeError):  # no file, a damaged one, or no home
        return set()
