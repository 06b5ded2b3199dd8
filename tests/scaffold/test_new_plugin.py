"""A package that `timmscope plugins new` wrote works untouched: installed, listed, tested."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest
from tests.environments import install, layered, run, timmscope

from timmscope.cli import main
from timmscope.scaffold import KINDS, new_plugin
from timmscope_registry import ParameterError


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A package of every kind, as the command writes it."""
    root = tmp_path_factory.mktemp("new")
    found = {}
    for kind in KINDS:
        found[kind] = root / kind
        assert main(["plugins", "new", f"my-{kind}", "--family", kind, "-o", str(found[kind])]) == 0
    return found


@pytest.fixture(scope="module")
def python(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own, on top of this one, with all of them installed."""
    python = layered(tmp_path_factory.mktemp("env"))
    install(python, packages.values(), editable=True)
    return python


def test_every_kind_is_listed_once_installed(python: Path, tmp_path: Path) -> None:
    listed = json.loads(timmscope(python, "plugins", "--json", cwd=tmp_path))
    mine = {entry["id"] for entry in listed["entries"] if "my-" in entry["id"]}
    assert mine == {f"timmscope-my-{kind}:my-{kind}" for kind in KINDS}
    assert listed["problems"] == []


def test_its_own_tests_pass_untouched(python: Path, packages: dict[str, Path]) -> None:
    """All in one process: each package's test file by its path, under its own configuration."""
    root = next(iter(packages.values())).parent
    files = [folder / "tests" for folder in packages.values()]
    told = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, cwd=root)
    assert " passed" in told
    assert "failed" not in told


def test_its_code_is_clean(packages: dict[str, Path]) -> None:
    root = next(iter(packages.values())).parent
    lint = ("--isolated", "--line-length", "100")
    rules = ("--select", "E,F,I,UP,B")
    run(sys.executable, "-m", "ruff", "check", *lint, *rules, root, cwd=root)
    run(sys.executable, "-m", "ruff", "format", "--check", *lint, root, cwd=root)


@pytest.mark.parametrize("name", ["Bad", "bad_name", "-x", "a--b", "9x", ""])
def test_a_name_that_cannot_be_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="cannot be a plugin's name"):
        new_plugin(name, "attack", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("class", "attack", "no module of the package can be called class"),
        ("plugin", "attack", "no module of the package can be called plugin"),
        ("none", "attack", "no class can be called None"),
        ("grad-cam", "attribution", "the technique timmscope:grad-cam has it"),
        ("registry", "attack", "there is a package timmscope_registry already"),
        ("style", "style", "there is a package timmscope_style already"),
        ("tensor", "attack", "its class would be called Tensor"),
        ("table", "representation", "its class would be called Table"),
        ("image", "image-source", "its class would be called Image"),
    ],
)
def test_a_name_that_something_else_has_is_refused(name, kind, words, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=f"{name}' cannot be a plugin's name: {words}"):
        new_plugin(name, kind, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_what_is_there_is_not_overwritten(tmp_path: Path, capsys) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["plugins", "new", "x", "--family", "attack", "-o", str(tmp_path)]) == 2
    assert "is there already: name another folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert main(["plugins", "new", "x", "--family", "painting"]) == 2
    assert 'invalid value "painting"' in capsys.readouterr().err


def test_what_to_do_next_can_be_copied_as_it_stands(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "my plugin"
    assert main(["plugins", "new", "ripple", "--family", "attack", "-o", str(folder)]) == 0
    steps = f"now: cd '{folder}' && python -m pip install -e \".[test]\" && python -m pytest"
    assert steps in capsys.readouterr().out
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"] == {"test": ["pytest>=8"]}
