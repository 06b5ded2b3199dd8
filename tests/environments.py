"""Environments of their own on top of this one, for tests of what others install."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import venv
from collections.abc import Iterable
from pathlib import Path

COMMAND = "import sys; from timmscope.cli import main; sys.exit(main(sys.argv[1:]))"

SEVERAL = """
import contextlib, io, json, sys
from timmscope.cli import main
for words in json.loads(sys.argv[1]):
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        status = main(words)
    print(json.dumps([status, told.getvalue()]))
"""


def layered(root: Path) -> Path:
    """Make an environment that sees all that is installed here; returns its Python."""
    venv.create(root / "env", with_pip=False)
    (own,) = (root / "env/lib").glob("python*/site-packages")
    here = ";".join(f"site.addsitedir({folder!r})" for folder in site.getsitepackages())
    (own / "outer.pth").write_text(f"import site;{here}\n")
    return root / "env/bin/python"


def pip(python: Path, *words: object) -> str:
    """Run this environment's pip for another one."""
    return run(sys.executable, "-m", "pip", "--python", python, *words)


def install(python: Path, packages: Iterable[Path], *, editable: bool = False) -> None:
    """Install packages from their folders, building with what is installed here."""
    flags = ("--quiet", "--no-deps", "--no-build-isolation")
    words = [word for folder in packages for word in (*["-e"] * editable, folder)]
    pip(python, "install", *flags, *words)


def run(*command: object, cwd: Path | None = None, status: int = 0) -> str:
    """Run a command that has to end with a status; returns what it told on either stream."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=600,
        env=variables,
    )  # fmt: skip
    told = done.stdout + done.stderr
    assert done.returncode == status, f"{command} ended with {done.returncode}\n{told[-9000:]}"
    return told


def timmscope(python: Path, *words: object, cwd: Path | None = None, status: int = 0) -> str:
    """Run the command line in an environment."""
    return run(python, "-c", COMMAND, *words, cwd=cwd, status=status)


def several(
    python: Path, *lines: tuple[object, ...], cwd: Path | None = None
) -> list[tuple[int, str]]:
    """Status and output of several command lines, run in one process, which imports torch once."""
    words = json.dumps([[str(word) for word in line] for line in lines])
    told = run(python, "-c", SEVERAL, words, cwd=cwd).splitlines()
    return [(status, text) for status, text in map(json.loads, told[-len(lines) :])]


if __name__ == "__main__":  # python -m tests.environments FOLDER GROUP
    pip(layered(Path(sys.argv[1])), "install", "--quiet", "--group", sys.argv[2])
