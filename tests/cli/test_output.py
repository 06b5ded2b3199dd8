"""Commands print and write correctly with unusual file names."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from timmscope.cli import output

Cli = Callable[..., Any]
MODEL = "random:resnet18?seed=0&img_size=64"
ODD = "a\nb [red]c \x1b[31m.png"
SEEN = r"a\nb [red]c \x1b[31m.png"


def test_control_characters_in_file_names_are_escaped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    output.table((ODD, "other"), [(ODD, 1)], title=ODD)
    output.say(f"wrote {ODD}".replace("\n", " "))
    output.print_stderr(f"error: {ODD}")
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert printed.out.count(SEEN) == 3
    assert SEEN.replace(r"\n", " ") in printed.out
    assert printed.err == f"timmscope: error: {SEEN}\n".replace(r"\n", " ", 1)


def test_file_names_that_are_not_utf_8_keep_table_columns_aligned(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    output.table(("name", "reason"), [(os.fsdecode(b"\xff\xfe.png"), "odd"), ("plain.png", "even")])
    lines = capsys.readouterr().out.splitlines()
    assert r"\udcff\udcfe.png" in lines[2]
    assert lines[2].index("odd") == lines[3].index("even")


def test_file_names_that_stdout_cannot_encode_are_escaped(
    fresh: Callable[..., Any], tmp_path: Path
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "ü.png")
    tokens = ["search", str(tmp_path / "s.scope"), str(tmp_path / "ü.png"), "-k", "1"]
    tokens += ["-o", str(tmp_path / "sheet.png")]
    mined = ["mine", MODEL, str(tmp_path), "-o", str(tmp_path / "s.scope"), "--workers", "0"]
    code = f"from timmscope.cli import main; print(main({mined!r}), main({tokens!r}))"
    done = fresh(code, PYTHONIOENCODING="ascii")
    assert done.stderr == ""
    assert done.stdout.endswith("0 0\n")
    assert r"\xfc.png" in done.stdout


def test_a_figure_is_written_to_the_given_path_or_refused(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    from timmscope import ParameterError

    output.write_figure(Figure(), tmp_path / "new" / "sheet")
    with Image.open(tmp_path / "new" / "sheet") as image:
        assert image.format == "PNG"
    with pytest.raises(IsADirectoryError):
        output.write_figure(Figure(), tmp_path / "new")
    with pytest.raises(ParameterError, match=r"not written as \.doc"):
        output.write_figure(Figure(), tmp_path / "sheet.doc")
    assert [file.name for file in tmp_path.iterdir()] == ["new"]


def test_control_characters_of_plugins_are_escaped(cli: Cli, tmp_path: Path) -> None:
    plugin = tmp_path / "odd\x1b[31m.py"
    plugin.write_text("raise ValueError('\\x1b[2J\\x9b1m')\n")
    for words in (["doctor"], ["doctor", "--json"], ["plugins"], ["plugins", "--json"]):
        printed = cli("--plugin", plugin, *words)
        assert "odd" in printed.out
        assert not {"\x1b", "\x9b"} & set(printed.out + printed.err)
