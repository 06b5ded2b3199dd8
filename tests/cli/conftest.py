"""Fixtures that run the command line in this process or in a new one."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from timmscope.cli import main


@dataclass(frozen=True)
class Outcome:
    """Exit status, stdout and stderr of a command."""

    status: int
    out: str
    err: str


Cli = Callable[..., Outcome]
CACHES = ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR")
"""Folders where Matplotlib caches its list of fonts, which takes seconds to make."""
TRUST = ("XDG_STATE_HOME", "TIMMSCOPE_TRUST")
"""Which stores are trusted."""


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return a function that runs a command in a temporary folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: object) -> Outcome:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


def fresh_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a new interpreter that sees the same packages."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PATH": os.environ.get("PATH", ""),
            "OMP_NUM_THREADS": "1",
            **{name: os.environ[name] for name in (*CACHES, *TRUST) if name in os.environ},
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def fresh() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return `fresh_process`."""
    return fresh_process


CONTRAST = '''
from typing import Literal
from pydantic import Field
from timmscope import AttributionTechnique
from timmscope_registry import TechniqueSpec, hookimpl

class Contrast(AttributionTechnique):
    """Distance of every pixel from the image's mean colour.

    Looks at `no` model,
    and never did.
    """

    power: float = Field(default=1.0, gt=0, le=4)
    """Exponent of the distance."""
    centre: bool = True
    """Subtract the mean first."""
    squared: bool = False
    """Square the result."""
    norm: Literal["l1", "l2"] = "l2"
    """Which norm."""
    steps: int | None = Field(default=None, ge=1)
    """How often."""
    scales: tuple[float, ...] = (1.0, 0.5)
    """Sizes to average."""

    def attribute(self, model, images, objective):
        mean = images.mean((2, 3), keepdim=True) if self.centre else 0
        distance = (images - mean).norm(dim=1, p=int(self.norm[1])) ** self.power
        return distance**2 if self.squared else distance

@hookimpl
def timmscope_techniques():
    yield TechniqueSpec(
        name="contrast",
        family="attribution",
        summary="Distance from the mean colour.",
        impl=f"{__name__}:Contrast",
        paper="Somebody, 2020",
    )
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """Write a plugin file with one attribution technique."""
    file = tmp_path / "contrast.py"
    file.write_text(CONTRAST)
    return file
