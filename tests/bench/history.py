"""Keeps the ratios of every `make bench`, one JSON line per run, so that one can see them move.

A line has the date (UTC), the commit and whether the work tree differed from it, facts about the
machine, versions, and one entry per pair with its ratio. Ratios of one machine can be compared;
seconds only tell how long a run takes.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from timmscope.results.result import environment_versions

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "benchmarks" / "history.jsonl"

Record = dict[str, Any]
"""One run, as a line of the file holds it."""


def append(pairs: list[dict[str, Any]]) -> None:
    """Add a run to `FILE`. Numbers keep four digits; more would be noise."""
    kept = [
        {key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in pair.items()}
        for pair in pairs
    ]
    commit, changed = _commit()
    record = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "changed": changed,
        "machine": machine(),
        "versions": {"python": platform.python_version(), **environment_versions()},
        "pairs": kept,
    }
    FILE.parent.mkdir(exist_ok=True)
    with FILE.open("a", encoding="utf-8") as out:
        out.write(json.dumps(record, ensure_ascii=False) + "\n")


def read() -> list[Record]:
    """All runs, oldest first; none where there is no file yet."""
    if not FILE.is_file():
        return []
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines() if line]


def machine() -> dict[str, Any]:
    """What decides speed: the processor, how many cores this process may use, torch's threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def moves(records: Iterable[Record], name: str) -> Iterator[tuple[str, list[Record]]]:
    """Each pair of a benchmark, and the runs that measured it, each with `ratio` and `change`.

    Args:
        records: runs, oldest first.
        name: a benchmark, as `grad-cam`, or a part of the name of a pair.

    Yields:
        The pair's name, and its runs. `change` is the ratio's change against the run before it on
        the same machine, as a share; None for the first one there.
    """
    found: dict[str, list[Record]] = {}
    for record in records:
        for pair in record["pairs"]:
            if name == pair["benchmark"] or name in pair["name"]:
                title = f"{pair['name']}: {pair['ours']} / {pair['theirs']}"
                runs = found.setdefault(title, [])
                before = [run for run in runs if run["machine"] == record["machine"]]
                change = pair["ratio"] / before[-1]["ratio"] - 1 if before else None
                runs.append({**record, "ratio": pair["ratio"], "change": change})
    yield from found.items()


def table(title: str, runs: list[Record]) -> Table:
    """How one pair has moved."""
    shown = Table("date", "commit", "ratio", "change", "machine", "torch", title=title, box=None)
    shown.title_justify = "left"
    for run in runs:
        facts = run["machine"]
        shown.add_row(
            run["date"][:10],
            (run["commit"] or "?")[:9] + ("+" if run["changed"] else ""),
            f"{run['ratio']:.3g}",
            "" if run["change"] is None else f"{run['change']:+.0%}",
            f"{facts['cpu']}, {facts['cores']} cores",
            run["versions"]["torch"],
        )
    return shown


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> tuple[str | None, bool | None]:
    """The commit that is checked out, and whether files differ from it; None outside of git."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--", ".", ":!benchmarks")
        return git("rev-parse", "HEAD"), bool(changes)
    except (OSError, subprocess.CalledProcessError):
        return None, None
