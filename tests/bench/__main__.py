"""`python -m tests.bench [NAME…]`: run the benchmarks whose names are given, or all."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tests.bench.cases import CASES

from timmscope.results.result import environment_versions


def main(names: list[str]) -> None:
    """Run, name each pair when it is measured, print a table of all, write `bench.json`."""
    unknown = set(names) - CASES.keys()
    if unknown:
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(CASES)}")
    table = Table("benchmark", "ours", "beside", "ours s", "theirs s", "ratio", box=None)
    rows = []
    for name in names or CASES:
        for pair in CASES[name]():
            rows.append(pair.row())
            print(f"{pair.name}: {pair.ours} / {pair.theirs} = {pair.ratio:.2f}", file=sys.stderr)
            numbers = (f"{pair.ours_s:.4f}", f"{pair.theirs_s:.4f}", f"{pair.ratio:.2f}")
            table.add_row(pair.name, pair.ours, pair.theirs, *numbers)
    Console(width=140).print(table)
    facts = {"versions": environment_versions(), "machine": platform.machine(), "pairs": rows}
    Path("bench.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
