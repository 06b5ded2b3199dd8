"""Whatever system call fails, or is the last before a kill: one clear line, and nothing is lost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.mining.faults import faults
from tests.mining.faulty_work import KINDS, Work

from timmscope import TimmscopeError

SHARES = [0.02, pytest.param(1.0, marks=pytest.mark.soak)]


def error_of(work: Callable[[], None]) -> str:
    try:
        work()
    except TimmscopeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_failing_call_is_one_clear_line_and_the_work_can_be_done_again(
    tmp_path: Path, kind: str, share: float
) -> None:
    work = Work(tmp_path, kind)
    assert {"fsync", "replace"} <= set(work.calls)
    raised = 0
    for at in work.sample(share):
        work.reset(tmp_path / "faulty")
        with faults(at, (errno.EIO, errno.ENOSPC)[at % 2]) as found:
            message = error_of(lambda: work.run(tmp_path / "faulty"))
        raised += bool(message)
        assert len(message.splitlines()) <= 1, found.names[-1]
        assert found.count >= at - 3  # the writer and the model are not always as far
        work.check(tmp_path / "faulty")
    assert raised


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", KINDS)
def test_work_that_is_killed_at_a_call_ends_in_the_same_bytes(
    tmp_path: Path, kind: str, share: float
) -> None:
    command = [sys.executable, "-m", "tests.mining.faulty_work", str(tmp_path), kind, str(share)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 2
