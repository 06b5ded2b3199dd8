"""The packages that `timmscope plugins new` writes can be installed, listed and tested."""

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
    for kind in KINDS:
        assert main(["plugins", "new", f"my-{kind}", "--base", kind, "-o", str(root / kind)]) == 0
    return {kind: root / kind for kind in KINDS}


@pytest.fixture(scope="module")
def python(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment on top of this one, with all the packages installed."""
    python = layered(tmp_path_factory.mktemp("env"))
    install(python, packages.values(), editable=True)
    return python


def test_every_kind_is_listed_after_installation(python: Path, tmp_path: Path) -> None:
    listed = json.loads(timmscope(python, "plugins", "--json", cwd=tmp_path))
    mine = {entry["id"] for entry in listed["entries"] if "my-" in entry["id"]}
    assert mine == {f"timmscope-my-{kind}:my-{kind}" for kind in KINDS}
    assert listed["problems"] == []


@pytest.mark.slow
def test_the_tests_of_every_package_pass(python: Path, packages: dict[str, Path]) -> None:
    root = next(iter(packages.values())).parent
    folders = [folder / "tests" for folder in packages.values()]
    output = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *folders, cwd=root)
    assert " passed" in output
    assert "failed" not in output


def test_the_code_of_every_package_passes_ruff(packages: dict[str, Path]) -> None:
    root = next(iter(packages.values())).parent
    lint = ("--isolated", "--line-length", "100")
    rules = ("--select", "E,F,I,UP,B")
    run(sys.executable, "-m", "ruff", "check", *lint, *rules, root, cwd=root)
    run(sys.executable, "-m", "ruff", "format", "--check", *lint, root, cwd=root)


@pytest.mark.parametrize("name", ["Bad", "bad_name", "-x", "a--b", "9x", ""])
def test_an_invalid_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="cannot be a plugin's name"):
        new_plugin(name, "attack", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("class", "attack", "no module of the package can be called class"),
        ("plugin", "attack", "no module of the package can be called plugin"),
        ("none", "attack", "no class can be called None"),
        ("grad-cam", "attribution", "the technique timmscope:grad-cam has this name"),
        ("registry", "attack", "a package timmscope_registry already exists"),
        ("style", "style", "a package timmscope_style already exists"),
        ("tensor", "attack", "its class would be called Tensor"),
        ("table", "store", "its class would be called Table"),
        ("image", "image-source", "its class would be called Image"),
    ],
)
def test_a_name_that_is_already_used_is_refused(name, kind, words, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=f"{name}' cannot be a plugin's name: {words}"):
        new_plugin(name, kind, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_existing_files_are_not_overwritten(tmp_path: Path, capsys) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["plugins", "new", "x", "--base", "attack", "-o", str(tmp_path)]) == 2
    assert "already exists: name another folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert main(["plugins", "new", "x", "--base", "painting"]) == 2
    assert 'invalid value "painting"' in capsys.readouterr().err


def test_the_printed_next_steps_can_be_run_as_they_are(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "my plugin"
    assert main(["plugins", "new", "ripple", "--base", "attack", "-o", str(folder)]) == 0
    steps = f"now: cd '{folder}' && python -m pip install -e \".[test]\" && python -m pytest"
    assert steps in capsys.readouterr().out
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"] == {"test": ["pytest>=8"]}
