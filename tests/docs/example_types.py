"""`python -m tests.docs.example_types`: type-check the Python examples of the pages.

Each page becomes one module in a temporary folder, with every line where the page has it, so that
an error's line number is the page's. A plugin file and a file that the page says to save become
modules of their own. mypy runs once over all modules, with the project's settings and its cache.
Only what readers need not do is allowed: functions without annotations, and a name that is bound
again to a value of another type.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.docs.pages import ROOT, Block, blocks, pages

SETTINGS = (
    "# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-redefinition"
)
"""Goes into the first line of every module; a page's first line is its title."""


def modules(examples: Iterable[Block]) -> dict[str, tuple[str, str]]:
    """Return the page and the text of each module, by the module's name."""
    lines: dict[str, dict[int, str]] = {}
    home: dict[str, str] = {}
    for block in examples:
        if block.skipped:
            continue
        page = re.sub(r"\W", "_", block.page)
        name = f"{page}_plugin" if block.is_plugin else page
        name = block.saved.removesuffix(".py") or name
        assert home.setdefault(name, block.page) == block.page, f"two pages save {block.saved}"
        numbered = enumerate(block.text.splitlines(), start=block.line)
        lines.setdefault(name, {1: SETTINGS}).update(numbered)
    return {
        name: (
            home[name],
            "".join(f"{found.get(number, '')}\n" for number in range(1, max(found) + 1)),
        )
        for name, found in lines.items()
    }


def check(examples: Iterable[Block]) -> list[str]:
    """Run mypy over the blocks; return its errors as `page:line: error: message  [code]`."""
    found = modules(examples)
    with tempfile.TemporaryDirectory() as folder:
        for name, (_, text) in found.items():
            Path(folder, f"{name}.py").write_text(text, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--output=json", "--no-warn-unused-configs", folder],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode and not reports:
        raise RuntimeError(f"mypy ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return [at_page(report, found) for report in reports]


def at_page(report: dict[str, str | int], found: dict[str, tuple[str, str]]) -> str:
    """One line of mypy's report, at its place in the page."""
    file = Path(str(report["file"]))
    page = found[file.stem][0] if file.stem in found else str(file)
    return f"{page}:{report['line']}: {report['severity']}: {report['message']}  [{report['code']}]"


def main() -> None:
    """Print all errors; the status is 1 if there are any."""
    examples = [block for page in pages() for block in blocks(page, "python")]
    errors = check(examples)
    print(*errors, sep="\n", end="\n" if errors else "")
    count = len({block.page for block in examples if not block.skipped})
    print(f"Examples on {count} pages: {len(errors) or 'no'} errors", file=sys.stderr)
    sys.exit(bool(errors))


if __name__ == "__main__":
    main()
