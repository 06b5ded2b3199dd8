"""Fills the table of docs/explanation/demo-cost.md from a report of the demo.

Run `python docs/_cost.py demo/report.html "A first run"` after a demo on an otherwise idle machine.
"""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path

PAGE = Path(__file__).parent / "explanation" / "demo-cost.md"
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"


def table(report: str, what: str) -> str:
    """Convert the report's table of costs to Markdown, and name the machine of the report."""
    part = report[report.index('<section id="cost">') :]
    rows = [
        [html.unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in cells]
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", part, re.DOTALL)
        if (cells := re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL))
    ]
    if len(rows) < 3:
        raise SystemExit("the report contains no table of costs")
    text = html.unescape(re.sub(r"<[^>]+>", " ", report))
    made = re.findall(r"\d{4}-\d\d-\d\d [^\n]*?threads?\b", " ".join(text.split()))[-1]
    lines = [f"{what}: {made}.", "", "| step | seconds | peak memory, MiB |", "|---|--:|--:|"]
    lines += [f"| {' | '.join(row[:3])} |" for row in rows if row[0] != "step"]
    return "\n".join(lines)


def main(report: str, what: str = "A first run") -> None:
    """Insert the table between the marks of the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    found = table(Path(report).read_text(encoding="utf-8"), what)
    PAGE.write_text(f"{before}{BEGIN}\n\n{found}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
