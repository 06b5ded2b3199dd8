"""Processes for tests that kill one, limit one or run two; they start in an instant.

A new interpreter takes seconds to import torch and timm. These processes are forked from a server
that has imported them, and has run nothing. What a test asserts about imports, about
variables that the interpreter reads when it starts, or about installed commands needs a new
interpreter instead.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "timmscope.models.sources",  # before timm, whose torchvision may not fit this torch
        "timm.models",
        "timmscope.cli.main",
        "timmscope.cli.layers",
        "timmscope.mining",
        "faiss",
    ]
)
_TIMEOUT_S = 3600.0


class Running:
    """A process that runs Python code.

    Args:
        code: what runs as `__main__`; or the name of a module of the tests.
        arguments: `sys.argv[1:]`.
        cwd: its working folder; by default this process's.
        environment: variables beside those of this process.
    """

    def __init__(
        self, code: str, *arguments: object, cwd: Path | None = None, **environment: str
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._streams = [Path(self._folder.name, name) for name in ("out", "err")]
        words = [*map(str, arguments)]
        given = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self._process = _CONTEXT.Process(
            target=_run, args=(code, words, given, cwd or Path.cwd(), self._streams)
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    def wait_for(self, text: str) -> None:
        """Wait until it has printed a text."""
        ends = time.monotonic() + _TIMEOUT_S
        while text not in self._read(0):
            assert self.alive, self._read(1)
            assert time.monotonic() < ends, f"{text!r} was not printed"
            time.sleep(0.005)

    def signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.alive:
            os.kill(self.pid, number)

    def done(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end; the exit status is minus the number of a signal that ended it."""
        self._process.join(_TIMEOUT_S)
        status = self._process.exitcode
        if status is None:
            self._process.kill()
            raise AssertionError(f"it did not end in {_TIMEOUT_S:g} s: {self._read(1)}")
        outcome = subprocess.CompletedProcess([], status, self._read(0), self._read(1))
        self._folder.cleanup()
        return outcome

    def _read(self, stream: int) -> str:
        path = self._streams[stream]
        return path.read_text("utf-8", "surrogateescape") if path.exists() else ""


def run_code(
    code: str, *arguments: object, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process, and wait for its end."""
    return Running(code, *arguments, cwd=cwd, **environment).done()


def run_command(
    *arguments: object, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of `timmscope` in a process, and wait for its end."""
    return run_code(COMMAND, *arguments, cwd=cwd, **environment)


COMMAND = "import sys; from timmscope.cli import main; sys.exit(main())"
"""Code that runs a command of `timmscope` with the process's arguments."""


def _run(
    code: str, arguments: list[str], environment: dict[str, str], cwd: Path, streams: list[Path]
) -> None:
    for number, path in enumerate(streams, start=1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stderr = os.fdopen(
        2, "w", encoding="utf-8", errors="surrogateescape", buffering=1, closefd=False
    )
    multiprocessing.set_start_method(None, force=True)  # what it starts is started as usual
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["timmscope", *arguments]
    if code.startswith("tests."):
        runpy.run_module(code, run_name="__main__")
    else:
        exec(compile(code, "<test>", "exec"), {"__name__": "__main__"})
