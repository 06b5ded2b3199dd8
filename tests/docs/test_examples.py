"""What the pages show works: Python blocks run, command lines parse, plugins do what they say."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cyclopts import App, Parameter
from PIL import Image
from tests.docs.pages import ROOT, blocks, commands, name, pages

from timmscope import technique
from timmscope.cli import main
from timmscope.cli.technique_command import command
from timmscope_registry import set_registry

WITH_PYTHON = [page for page in pages() if blocks(page, "python")]
WITH_PLUGIN = [page for page in WITH_PYTHON if any(b.is_plugin for b in blocks(page, "python"))]
SHOWN = list(commands("timmscope"))


@pytest.fixture
def desk(tmp_path: Path, photo_paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files that the pages talk of."""
    (tmp_path / "photos").mkdir()
    for photo, path in photo_paths.items():
        Image.open(path).convert("RGB").save(tmp_path / "photos" / f"{photo}.jpg", quality=95)
    shutil.copy(tmp_path / "photos/chelsea.jpg", tmp_path / "cat.jpg")
    shutil.copy(tmp_path / "photos/coffee.jpg", tmp_path / "coffee.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fresh_registry() -> Iterator[None]:
    yield
    set_registry(None)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
def test_every_python_block_runs_after_those_before_it(
    page: Path, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope: dict[str, object] = {"__name__": "example"}
    torch.manual_seed(0)
    monkeypatch.syspath_prepend(str(desk))
    for block in blocks(page, "python"):
        if block.saved:
            (desk / block.saved).write_text(block.text, encoding="utf-8")
        elif not (block.skipped or block.is_plugin):
            # Blank lines above make the line numbers of a traceback those of the page.
            source = "\n" * (block.line - 1) + block.text
            # The future features of this file are not those of the page.
            code = compile(source, str(ROOT / block.page), "exec", dont_inherit=True)
            exec(code, scope)


@pytest.mark.parametrize("page", WITH_PLUGIN, ids=name)
@pytest.mark.usefixtures("fresh_registry")
def test_a_plugin_shown_on_a_page_runs_as_the_page_says(
    page: Path, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = [block for block in blocks(page, "python") if block.is_plugin]
    (desk / "my.py").write_text(code.text, encoding="utf-8")
    lines = [
        words for where, words in SHOWN if where.startswith(f"{name(page)}:") and "my.py" in words
    ]
    assert any("run" in words for words in lines)
    for number, words in enumerate(lines):
        made = desk / f"made-{number}"
        output = [] if "doctor" in words else ["-o", str(made)]
        assert main([*words, *output]) == 0, capsys.readouterr().err
        if "run" in words:
            result = json.loads((made / "result.json").read_text())
            assert result["provenance"]["technique"].startswith("my.py:")
        if output:
            assert (made / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize("words", [w for _, w in SHOWN], ids=[where for where, _ in SHOWN])
def test_every_command_line_parses(words: list[str]) -> None:
    if "my.py" in words:
        where = words.index("--plugin")
        words = words[:where] + words[where + 2 :]
        if words[0] == "run":
            return  # run for real, above
    parse(words)


def test_the_makefile_calls_the_command_line_as_it_is() -> None:
    text = (ROOT / "Makefile").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("\t$(BIN)/timmscope")]
    words = shlex.split(line.replace("$(if $(IMAGES),", "").replace('"$(IMAGES)")', "there"))
    parse(words[1:])


def parse(words: list[str]) -> None:
    """Bind words to the real command without running it; cyclopts raises what does not fit."""
    words = [word for word in words if word != "--trust"]  # a flag of every command
    app, rest = sys.modules["timmscope.cli.main"].app, words
    if words[0] == "run":
        if len(words) == 1 or words[1].startswith("gradient-times") or words[1] == "my-thing":
            return
        kind = technique(words[1])
        app = App(default_parameter=Parameter(negative=""))
        app.default(command(kind, words[1]))
        rest = words[2:]
    app.parse_args(rest, exit_on_error=False, print_error=False)
