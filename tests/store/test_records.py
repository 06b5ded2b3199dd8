"""The journal of a run: every damaged, missing or foreign line is noticed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from timmscope import StoreCorrupted, StoreError, checked_json
from timmscope.store import records
from timmscope.store.records import Journal

SETTINGS = {"model": "m", "seed": 0}
RECORDS = [{"image": number, "name": "ä.png", "score": number / 4} for number in range(4)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    journal = Journal(tmp_path, SETTINGS)
    for record in RECORDS:
        journal.add(record)
    return tmp_path


def test_records_are_read_back_in_order(folder):
    journal = Journal(folder, SETTINGS)
    assert journal.count == 4
    assert [{key: each[key] for key in RECORDS[0]} for each in journal] == RECORDS
    journal.add({"image": 4, "score": float("nan")})
    assert list(Journal(folder, SETTINGS))[4]["score"] is None


def test_every_flipped_bit_is_noticed(folder):
    for name, allowed in (("evaluation.json", 2), ("records.jsonl", 0)):
        whole = (folder / name).read_bytes()
        unseen = 0
        for place in range(len(whole) - 1):
            data = bytearray(whole)
            data[place] ^= 1 << place % 7
            (folder / name).write_bytes(data)
            try:
                unseen += list(Journal(folder, SETTINGS))[:4] == RECORDS
            except StoreCorrupted:
                continue
        assert unseen <= allowed, name  # white space of JSON
        (folder / name).write_bytes(whole)


@pytest.mark.parametrize(
    ("change", "number"),
    [
        (lambda lines: [lines[0], *lines[2:]], 2),
        (lambda lines: [lines[0], lines[0], *lines[2:]], 2),
        (lambda lines: [*lines[:3], bytes(len(lines[3]) - 1) + b"\n"], 4),
        (lambda lines: [*lines, checked_json.dump({"image": 4})], 5),
        (lambda lines: [*lines, b"[" * 100_000 + b"\n"], 5),
    ],
    ids=["missing", "twice", "zeros", "foreign", "nested"],
)
def test_a_wrong_line_is_named(folder, change, number):
    records = folder / "records.jsonl"
    records.write_bytes(b"".join(change(records.read_bytes().splitlines(keepends=True))))
    with pytest.raises(StoreCorrupted, match=f"records.jsonl, line {number} cannot be read"):
        Journal(folder, SETTINGS)


@pytest.mark.parametrize("name", ["evaluation.json", "records.jsonl"])
def test_a_pipe_is_refused(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    match = f"{name} cannot be read: .*a pipe.*; restore it from a copy, or choose another folder"
    with pytest.raises(StoreCorrupted, match=match):
        Journal(folder, SETTINGS)


def test_a_failing_disk_is_not_taken_for_damage(folder, monkeypatch):
    def fail(*given):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(records, "read_regular", fail)
    with pytest.raises(StoreError, match=r"cannot be read now \(.*\); check the disk") as caught:
        Journal(folder, SETTINGS)
    assert type(caught.value) is StoreError
