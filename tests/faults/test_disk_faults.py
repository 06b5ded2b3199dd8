"""Whatever system call fails, or is the last before a kill: one clear line, and nothing is lost."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from tests.faults.disk_faults import faults
from tests.faults.sweep import fails
from tests.faults.work import WORKS, Add
from tests.processes import run_code

from timmscope import StoreError, VectorIndexError
from timmscope.store.records import Journal

SAMPLED = ["pass", "add", "save", "evaluate"]
"""One kind of work for each way of writing files."""

SHARES = [
    pytest.param(0.02, list(WORKS), marks=pytest.mark.slow, id="some"),
    *(pytest.param(1.0, [kind], marks=pytest.mark.soak, id=kind) for kind in WORKS),
]


@pytest.mark.parametrize("kind", SAMPLED)
def test_a_failing_call_is_one_clear_line_and_the_work_can_be_done_again(
    tmp_path: Path, kind: str
) -> None:
    work = WORKS[kind](tmp_path)
    for at in work.sample(0.005):
        work.reset()
        fails(work, at)
        work.check()


@pytest.mark.parametrize(("share", "kinds"), SHARES)
def test_work_can_be_done_again_wherever_a_call_failed_or_was_the_last(
    tmp_path: Path, share: float, kinds: list[str]
) -> None:
    done = run_code("tests.faults.sweep", tmp_path, share, *kinds)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == kinds
    for kind, *counts in lines:
        tried, reported, killed = map(int, counts)
        assert tried >= 2, kind
        assert reported >= tried // 2 - 1, kind  # some failures change nothing, as of an unlink
        assert killed >= tried - 1, kind  # the last call may have been the first run's alone


def test_rows_can_be_added_to_the_same_index_after_the_disk_was_full(tmp_path: Path) -> None:
    work = Add(tmp_path)
    spool = work.calls.index("write")
    assert work.calls[spool - 1] == "open"  # the temporary file of the rows
    work.reset()
    index = work.load()
    with faults(spool + 1, errno.ENOSPC), pytest.raises(VectorIndexError, match="kept on disk"):
        index.add_missing()
    assert index.add_missing() == 4
    index.save()
    assert work.read() == work.states[1]


def test_a_journal_that_cannot_be_written_or_read_now_is_not_called_damaged(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {"seed": 0})
    journal.add({"image": 0})
    with faults(2, errno.ENOSPC), pytest.raises(StoreError, match="the disk is full"):
        journal.add({"image": 1})  # half of the line is there
    with faults(1), pytest.raises(StoreError, match=r"records.jsonl: cannot be written"):
        Journal(tmp_path, {"seed": 0})
    resumed = Journal(tmp_path, {"seed": 0})
    assert [record["image"] for record in resumed] == [0]
    resumed.add({"image": 1})
    assert [record["image"] for record in Journal(tmp_path, {"seed": 0})] == [0, 1]
