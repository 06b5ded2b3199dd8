"""Saves a command's result and prints its summary and where it was saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from timmscope.cli import output

if TYPE_CHECKING:
    from timmscope.results import Result

_MOST_ROWS = 40
"""Rows of a summary that are printed."""


def save_and_print(result: Result, folder: Path, *, as_json: bool) -> None:
    """Save a result to a folder; print its summary, or with `as_json` its ``result.json``."""
    result.save(folder)
    record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    if as_json:
        output.print_json(record)
        return
    rows = record["summary"]
    output.records(rows[:_MOST_ROWS])
    if len(rows) > _MOST_ROWS:
        output.say(f"and {len(rows) - _MOST_ROWS:,} more rows; result.json has all under summary")
    for line in result.named_lines():
        output.say(line)
    output.say(f"\nwrote {', '.join(record['files'])}, arrays.h5 and result.json to {folder}")


def default_folder(kind: str, subject: str) -> Path:
    """Return the default folder of a result: ``timmscope-out/KIND-SUBJECT``."""
    return Path("timmscope-out") / f"{kind}-{output.slug(subject)}"
