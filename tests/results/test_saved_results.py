"""Saved results: complete after a kill at any moment, and safe to load whoever wrote them."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from timmscope import Result, TimmscopeError, checked_json, load_result
from timmscope.results import Provenance, loading, saving

NAMES = ["arrays.h5", "figure.png", "numbers.csv", "result.json"]


@dataclass(frozen=True, kw_only=True)
class Numbers(Result):
    """One number, as an array, as a field, in a document and as a picture."""

    values: np.ndarray
    number: int
    labels: list[str]
    share: float | None = None

    def figure(self) -> Any:
        return SimpleNamespace(savefig=lambda path, dpi: path.write_bytes(b"%d" % self.number))

    def documents(self) -> dict[str, str]:
        return {"numbers.csv": str(self.number)}

    def summary(self) -> list[dict[str, Any]]:
        return [{"number": self.number}]


def numbers(number: int) -> Numbers:
    provenance = Provenance(
        technique="numbers", family="", parameters={}, model=None, weights_sha256=None, seed=number
    )
    values = np.full((3, 2), number, np.float64)
    return Numbers(provenance=provenance, values=values, number=number, labels=["a"])


def complete(folder: Path) -> int:
    """Return the number of the result in a folder, which must be of one save in all its parts."""
    found = load_result(folder, Numbers)
    assert found.values.tolist() == [[found.number] * 2] * 3
    assert found.provenance.seed == found.number
    for name in ("numbers.csv", "figure.png"):
        assert saving.open_newest(folder, name, 99).read() == b"%d" % found.number
    return found.number


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


class Killed(BaseException):
    """Ends a save like a kill: nothing is tidied up."""


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, call: int) -> Iterator[list[str]]:
    """Raise `Killed` before or after a call to the file system, by the call's number."""
    calls: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **settings: Any) -> Any:
            calls.append(name)
            if len(calls) == call:
                raise Killed
            found = function(*args, **settings)
            calls.append(f"after {name}")
            if len(calls) == call:
                raise Killed
            return found

        return run

    with monkeypatch.context() as patch:
        patch.setattr(saving.shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(os, "fsync", counted("fsync", os.fsync))
        for name in ("mkdir", "write_bytes", "write_text", "rename", "replace", "rmdir"):
            patch.setattr(Path, name, counted(name, getattr(Path, name)))
        yield calls


def test_a_save_that_is_killed_leaves_the_old_or_the_new_result(monkeypatch, tmp_path):
    (tmp_path / "count").mkdir()
    with killed_at(monkeypatch, 0) as calls:
        numbers(0).save(tmp_path / "count")
    assert calls.count("replace") == len(NAMES)
    assert calls.count("fsync") == len(NAMES) + 3
    outcomes = []
    for call in range(1, len(calls) + 1):
        folder = tmp_path / str(call)
        numbers(1).save(folder)
        (folder / "mine.txt").write_text("kept")
        with pytest.raises(Killed), killed_at(monkeypatch, call):
            numbers(2).save(folder)
        outcomes.append(complete(folder))
        for left in folder.glob(".saving-*"):
            os.utime(left, (0, 0))
        numbers(3).save(folder)
        assert complete(folder) == 3
        assert names(folder) == sorted([*NAMES, "mine.txt"])
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {1, 2}


def test_a_save_that_fails_changes_nothing(monkeypatch, tmp_path):
    numbers(1).save(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TimmscopeError, match=r"cannot write the result to .*No space left"):
            numbers(2).save(tmp_path)
    assert complete(tmp_path) == 1
    assert names(tmp_path) == NAMES


def test_saves_and_loads_at_the_same_time_are_each_complete(tmp_path):
    numbers(0).save(tmp_path)
    wrong: list[BaseException] = []

    def save(first: int) -> None:
        try:
            for number in range(first, first + 30):
                numbers(number).save(tmp_path)
        except BaseException as error:
            wrong.append(error)

    savers = [threading.Thread(target=save, args=(first,)) for first in (100, 200)]
    for each in savers:
        each.start()
    while any(each.is_alive() for each in savers):
        found = load_result(tmp_path, Numbers)
        assert found.values.tolist() == [[found.number] * 2] * 3
    assert not wrong
    assert complete(tmp_path) in (129, 229)
    assert names(tmp_path) == NAMES


ADVICE = (
    "; name a folder with result.json and arrays.h5, as save or -o writes it",
    "; check the disk, the permissions and the limit of open files, then try again",
    "; free some, then try again",
    "; restore result.json and arrays.h5 from a copy, or make the result again",
    ": pass its class, or none",
)
"""What to do next: each error ends with one of these."""


def refused(folder: Path, match: str) -> None:
    with pytest.raises(TimmscopeError, match=match) as caught:
        load_result(folder, Numbers)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).endswith(ADVICE)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (FileNotFoundError(2, "No such file or directory"), 0),
        (PermissionError(13, "Permission denied"), 1),
        (OSError(5, "Input/output error"), 1),
        (MemoryError(), 2),
    ],
)
def test_an_error_of_the_machine_is_not_taken_for_damage(monkeypatch, tmp_path, error, advice):
    numbers(1).save(tmp_path)

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(loading, "open_newest", fail)
    refused(tmp_path, f"{ADVICE[advice]}$")


def test_every_flipped_bit_is_noticed(tmp_path):
    numbers(7).save(tmp_path)
    for name, step in (("result.json", 3), ("arrays.h5", 29)):
        whole = (tmp_path / name).read_bytes()
        same = 0
        for place in range(0, len(whole), step):
            data = bytearray(whole)
            data[place] ^= 1 << place % 8
            (tmp_path / name).write_bytes(data)
            try:
                refused(tmp_path, "no result can be read|holds 'Numbers|which no plugin")
            except pytest.fail.Exception:
                same += 1
                assert load_result(tmp_path, Numbers).number == 7
        (tmp_path / name).write_bytes(whole)
        assert same <= (2 if name == "result.json" else 0)  # white space of JSON
    assert complete(tmp_path) == 7


def test_arrays_of_another_save_are_refused(tmp_path):
    numbers(1).save(tmp_path / "a")
    numbers(2).save(tmp_path / "b")
    (tmp_path / "a" / "arrays.h5").write_bytes((tmp_path / "b" / "arrays.h5").read_bytes())
    refused(tmp_path / "a", "arrays.h5 differs from its digest")


def forge(folder: Path, **changes: Any) -> None:
    """Change the record, and give it the digests that it must have."""
    record = checked_json.load((folder / "result.json").read_bytes())
    arrays = (folder / "arrays.h5").read_bytes()
    record["arrays_file"] = {"size": len(arrays), "sha256": hashlib.sha256(arrays).hexdigest()}
    (folder / "result.json").write_bytes(checked_json.dump(record | changes))


def external_link(file: h5py.File, secret: Path) -> None:
    file["values"] = h5py.ExternalLink(str(secret), "values")


def soft_link(file: h5py.File, secret: Path) -> None:
    file["there"] = np.ones((3, 2))
    file["values"] = h5py.SoftLink("/there")


def external_storage(file: h5py.File, secret: Path) -> None:
    file.create_dataset("values", (3, 2), "f8", external=[(str(secret), 0, 48)])


def virtual(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((3, 2), "f8")
    layout[:] = h5py.VirtualSource(str(secret), "values", (3, 2))
    file.create_virtual_dataset("values", layout)


def objects(file: h5py.File, secret: Path) -> None:
    file.create_dataset("values", (3, 2), h5py.string_dtype())


def never_written(file: h5py.File, secret: Path) -> None:
    file.create_dataset("values", (3, 2), "f8")


def compressed(file: h5py.File, secret: Path) -> None:
    file.create_dataset("values", data=np.zeros((3, 2)), chunks=(3, 2), compression="gzip")


def group(file: h5py.File, secret: Path) -> None:
    file.create_group("values")


def other_shape(file: h5py.File, secret: Path) -> None:
    file["values"] = np.ones((4, 2))


HOSTILE = [
    external_link, soft_link, external_storage, virtual, objects, never_written, compressed, group,
    other_shape,
]  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: change.__name__)
def test_arrays_never_reach_outside_or_claim_more_than_is_there(change, tmp_path):
    numbers(1).save(tmp_path / "r")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["values"] = np.full((3, 2), 42.0)
    with h5py.File(tmp_path / "r" / "arrays.h5", "w") as file:
        change(file, tmp_path / "secret.h5")
    forge(tmp_path / "r")
    refused(tmp_path / "r", "no result can be read from")


def test_a_claimed_shape_takes_no_memory(tmp_path):
    numbers(1).save(tmp_path)
    with h5py.File(tmp_path / "arrays.h5", "w") as file:
        file.create_dataset("values", (10**10, 10**3), "f8")
    forge(tmp_path, arrays={"values": [10**10, 10**3]})
    refused(tmp_path, "claims 80000000000000 bytes, the file holds 0")


@pytest.mark.parametrize("name", ["result.json", "arrays.h5"])
def test_a_pipe_in_place_of_a_file_is_refused(name, tmp_path):
    numbers(1).save(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    refused(tmp_path, "a pipe or a device, not a file")


FIELDS = {"number": 1, "labels": ["a"], "share": None}
ODD: dict[str, dict[str, Any]] = {
    "number is of type str": {"fields": FIELDS | {"number": "1"}},
    "number is of type bool": {"fields": FIELDS | {"number": True}},
    "labels is of type list": {"fields": FIELDS | {"labels": [None]}},
    "labels is of type dict": {"fields": FIELDS | {"labels": {}}},
    "share is of type str": {"fields": FIELDS | {"share": "x"}},
    "values is of type list": {"fields": FIELDS | {"values": [1]}, "arrays": {}},
    "number is of type Tensor": {"fields": FIELDS, "arrays": {"values": [3, 2], "number": []}},
    "missing 1 required": {"fields": {"number": 1}},
    "unexpected keyword argument 'more'": {"fields": FIELDS | {"more": 1}},
    "TypeError": {"fields": 3},
    "KeyError|no array": {"arrays": {"nothing": []}},
    "no array of shape": {"arrays": {"values": "3"}},
    "invalid literal": {"arrays_file": {"size": "x"}},
    "is not iterable|TypeError": {"provenance": None},
}


@pytest.mark.parametrize("match", ODD)
def test_odd_types_are_one_line(match, tmp_path):
    numbers(1).save(tmp_path)
    if "Tensor" in match:
        with h5py.File(tmp_path / "arrays.h5", "a") as file:
            file["number"] = 1
    forge(tmp_path)
    record = checked_json.load((tmp_path / "result.json").read_bytes())
    (tmp_path / "result.json").write_bytes(checked_json.dump(record | ODD[match]))
    refused(tmp_path, match)


@pytest.mark.parametrize(
    "change", [{"seed": "1"}, {"technique": ["x"]}, {"call": []}, {"parameters": None}]
)
def test_odd_provenance_is_one_line(change, tmp_path):
    numbers(1).save(tmp_path)
    record = json.loads((tmp_path / "result.json").read_bytes())
    forge(tmp_path, provenance=record["provenance"] | change)
    refused(tmp_path, f"{next(iter(change))} is of type .*, expected")
