"""`python -m tests.bench [NAME…]`: run the benchmarks whose names are given, or all.

Prints a table and adds the run to `benchmarks/history.jsonl`, also when it is interrupted.
`--history NAME` runs nothing and shows how the ratios of a benchmark have moved; a `+` after a
commit means that files differed from it.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from tests.bench import history
from tests.bench.cases import CASES
from tests.digits.load import NETWORKS


def main(words: list[str] | None = None) -> None:
    """Run benchmarks, or show the history of one."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}")
    parser.add_argument("--history", metavar="NAME", help="a benchmark, or part of a pair's name")
    chosen = parser.parse_args(words)
    os.environ.setdefault("TIMMSCOPE_TRUST", str(NETWORKS))  # the networks were trained elsewhere
    if chosen.history is not None:
        show(chosen.history)
        return
    unknown = set(chosen.names) - CASES.keys()
    if unknown:
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(CASES)}")
    measure(chosen.names or list(CASES))


def measure(names: list[str]) -> None:
    """Run, name each pair when it is measured, print a table of all, keep the ratios."""
    table = Table("benchmark", "ours", "beside", "of ours", "of theirs", "ratio", box=None)
    rows: list[dict[str, Any]] = []
    try:
        for name in names:
            for pair in CASES[name]():
                rows.append({"benchmark": name, **pair.row()})
                print(
                    f"{pair.name}: {pair.ours} / {pair.theirs} = {pair.ratio:.2f}", file=sys.stderr
                )
                both = (f"{value:.4g} {pair.unit}" for value in (pair.ours_s, pair.theirs_s))
                table.add_row(pair.name, pair.ours, pair.theirs, *both, f"{pair.ratio:.2f}")
    finally:
        if rows:
            history.append(rows)
    Console(width=140).print(table)


def show(name: str) -> None:
    """Print how each pair of a benchmark has moved."""
    found = list(history.moves(history.read(), name))
    if not found:
        sys.exit(f"{history.FILE} has no run of {name}; benchmarks are: {', '.join(CASES)}")
    console = Console(width=140)
    for title, runs in found:
        console.print(history.table(title, runs), "")


if __name__ == "__main__":
    main()
