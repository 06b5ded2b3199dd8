"""The pages that people write by hand, and the blocks of code in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SKIP = "<!-- not run"
_SAVED = re.compile(r"<!-- saved as (\S+) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        skipped: whether the page says that it is not to be run.
        saved: the file that the page says it is, instead.
    """

    page: str
    line: int
    language: str
    text: str
    skipped: bool
    saved: str

    @property
    def is_plugin(self) -> bool:
        """Whether it is a file given to `--plugin`."""
        return "@hookimpl" in self.text


def pages() -> list[Path]:
    """README, contributing guide and docs, without what is generated."""
    docs = (ROOT / "docs").rglob("*.md")
    own = [path for path in docs if not {"_build", "generated"} & set(path.parts)]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(own)]


def name(page: Path) -> str:
    """The page relative to the project."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[Block]:
    """All blocks of one language, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        before = text[: match.start()]
        if match[1] == language:
            last = before.rstrip().rpartition("\n")[2]
            file = _SAVED.search(last)
            line = before.count("\n") + 2
            saved = file[1] if file else ""
            found.append(Block(name(page), line, language, match[2], _SKIP in last, saved))
    return found


def commands(program: str) -> Iterator[tuple[str, list[str]]]:
    """Where each command line of a program is shown, and its words."""
    for page in pages():
        for block in blocks(page, "console"):
            for offset, line in enumerate(block.text.splitlines()):
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if line.startswith("$ ") and words[:1] == [program]:
                    yield f"{block.page}:{block.line + offset}", words[1:]
