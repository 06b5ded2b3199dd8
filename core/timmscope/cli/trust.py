"""Asks on the terminal whether a store may open the model and the images that it records."""

from __future__ import annotations

import sys
from pathlib import Path

from timmscope.cli import output


def ask(folder: Path, wanted: str) -> bool:
    """Ask whether a store is trusted; without a terminal the answer is no.

    Args:
        folder: the store or trained network.
        wanted: what the store asks to open, in words.
    """
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    output.print_stderr(f"{folder}: you have not made this, and it wants to open {wanted}")
    output.print_stderr("do you trust it? yes or no:")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def agree(folder: Path, wanted: str) -> bool:
    """Return True, because the flag ``--trust`` trusts every store."""
    return True
