"""An example that is wrong in type is reported at its line of its page."""

from __future__ import annotations

import subprocess

import pytest
from tests.docs import example_types
from tests.docs.example_types import at_page, check, modules
from tests.docs.pages import Block, blocks, pages


def block(line: int, text: str, page: str = "docs/page.md", saved: str = "") -> Block:
    return Block(page, line, "python", text, skipped=False, saved=saved)


def test_every_line_of_a_module_is_where_the_page_has_it() -> None:
    for page in pages():
        shown = page.read_text(encoding="utf-8").splitlines()
        for home, text in modules(blocks(page, "python")).values():
            first, *lines = text.splitlines()
            assert first == example_types.SETTINGS
            assert home == page.relative_to(example_types.ROOT).as_posix()
            for number, line in enumerate(lines, start=2):
                assert not line or line == shown[number - 1]


def test_plugins_and_saved_files_are_modules_of_their_own() -> None:
    plugin = "from timmscope_registry import hookimpl\n@hookimpl\ndef f(): ...\n"
    found = modules([block(3, "x = 1\n"), block(9, plugin), block(20, "y = 2\n", saved="my.py")])
    assert {name: text.count("\n") for name, (_, text) in found.items()} == {
        "docs_page_md": 3,
        "docs_page_md_plugin": 11,
        "my": 20,
    }


def test_two_pages_cannot_save_one_file() -> None:
    with pytest.raises(AssertionError, match="two pages save"):
        modules([block(3, "", saved="a.py"), block(3, "", page="docs/other.md", saved="a.py")])


def test_an_error_is_reported_at_its_line_of_the_page() -> None:
    wrong = block(40, "def double(x: int):\n    return 2 * x\n\n\nx = 'text'\nx = double('4')\n")
    (line,) = check([block(7, "right = 1\n"), wrong])
    assert line.startswith("docs/page.md:45: error: Argument 1 to ")
    assert line.endswith("[arg-type]")


def test_an_error_outside_the_pages_keeps_its_file() -> None:
    report = {"file": "core/x.py", "line": 3, "severity": "error", "message": "no", "code": "misc"}
    assert at_page(report, {}) == "core/x.py:3: error: no  [misc]"


def test_a_crash_of_mypy_is_not_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = subprocess.CompletedProcess([], 2, stdout="", stderr="INTERNAL ERROR")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: crash)
    with pytest.raises(RuntimeError, match="INTERNAL ERROR"):
        check([])


def test_a_syntax_error_is_reported_like_any_other() -> None:
    (line,) = check([block(5, "print(1 2)\n")])
    assert line.startswith("docs/page.md:5: error: ")
