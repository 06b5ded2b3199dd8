"""A pass that was interrupted in any way resumes and ends with the same bytes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from tests.mining.contents import contents
from tests.processes import Running, run_code, run_command

from timmscope import HookedModel, load_model
from timmscope.images import ArraySource, FolderSource
from timmscope.mining import loader, mine, pipeline, reductions, verify, writer
from timmscope.store import Store, shards
from timmscope.store.lock import StoreLock
from timmscope.testing import tiny_model
from timmscope.testing.subjects import tiny_pictures
from timmscope_registry import StoreCorrupted, StoreError, StoreMismatch

SETTINGS: dict[str, Any] = {
    "layers": ["layer1", "global_pool"],
    "batch_size": 5,
    "shard_size": 12,
    "top_k": 6,
    "workers": 0,
}


def run(model: HookedModel, pictures: Any, out: Path, **options: Any) -> Store:
    return mine(model, pictures, out, **{**SETTINGS, **options})


def datasets(folder: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*.h5")):
        with h5py.File(path) as file:

            def keep(name: str, item: object, path: Path = path) -> None:
                if isinstance(item, h5py.Dataset):
                    found[f"{path.relative_to(folder)}/{name}"] = item[()].tobytes()

            file.visititems(keep)
    return found


@pytest.mark.parametrize(
    "kills", [pytest.param(10, marks=pytest.mark.slow), pytest.param(50, marks=pytest.mark.soak)]
)
def test_killed_and_resumed_runs_are_bit_identical(
    pictures: Path, tmp_path: Path, kills: int
) -> None:
    done = run_code("tests.mining.killing", pictures, tmp_path, kills, kills)
    assert done.returncode == 0, done.stderr
    shards = json.loads(done.stdout)["shards"]
    assert len(shards) >= kills
    assert any(0 < count < 7 for count in shards), "no kill fell into the middle of a pass"
    whole = tmp_path / "whole"
    expected, arrays = contents(whole), datasets(whole)
    assert len(arrays) > 7 * 20
    others = [path for path in tmp_path.iterdir() if path != whole]
    assert len(others) >= 6
    for other in others:
        assert datasets(other) == arrays, other.name
        assert contents(other) == expected, other.name
        assert verify(other).ok


def test_resuming_a_finished_store_computes_nothing(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    store = run(small_model, pictures, tmp_path / "s")
    times = {path: path.stat().st_mtime_ns for path in store.path.rglob("*.h5")}
    again = mine(small_model, pictures, tmp_path / "s")  # settings come from the store
    assert {path: path.stat().st_mtime_ns for path in again.path.rglob("*.h5")} == times


@pytest.mark.parametrize(
    "damage",
    ["delete a shard", "delete its reduced state", "truncate a shard", "delete the merged state"],
)
def test_a_resumed_pass_restores_only_what_is_missing(
    small_model: HookedModel, pictures: Path, tmp_path: Path, damage: str
) -> None:
    store = run(small_model, pictures, tmp_path / "s")
    expected = contents(store.path)
    victim = (
        store.path
        / {
            "delete a shard": "shards/00001.h5",
            "delete its reduced state": "reduced/00001.h5",
            "truncate a shard": "shards/00001.h5",
            "delete the merged state": "reduced/merged.h5",
        }[damage]
    )
    times = {path: path.stat().st_mtime_ns for path in store.path.rglob("*.h5")}
    if damage.startswith("truncate"):
        victim.write_bytes(victim.read_bytes()[:-100])
    else:
        victim.unlink()
    run(small_model, pictures, tmp_path / "s")
    assert contents(store.path) == expected
    redone = {path.name for path, t in times.items() if path.stat().st_mtime_ns != t}
    assert redone <= {"00001.h5", "merged.h5"}


def test_the_merged_state_is_repaired_without_the_images(
    small_model: HookedModel, own_pictures: Path, tmp_path: Path
) -> None:
    store = run(small_model, own_pictures, tmp_path / "s")
    whole = contents(store.path)
    (store.path / "reduced/merged.h5").write_bytes(b"")
    own_pictures.rename(tmp_path / "elsewhere")
    report = verify(store.path, repair=True)
    assert (report.ok, report.repaired) == (True, ("reduced/merged.h5",))
    assert contents(store.path) == whole


@pytest.mark.parametrize("name", ["shards/00001.h5", "reduced/00002.h5", "reduced/merged.h5"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_repair_restores_the_damaged_shard_byte_for_byte(
    small_model: HookedModel, pictures: Path, tmp_path: Path, name: str, damage: str
) -> None:
    store = run(small_model, pictures, tmp_path / "s")
    expected = contents(store.path)
    path = store.path / name
    redone = {path.name, "merged.h5"}  # both files of the shard
    others = {
        other: (other.stat().st_ino, other.stat().st_mtime_ns)
        for other in store.path.rglob("*.h5")
        if other.name not in redone
    }
    assert len(others) == 2 * len(store.manifest.shards) - 2 * (path.name != "merged.h5")
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-1])
    else:
        path.unlink()
    assert [item.file for item in verify(store.path).damage] == [name]
    report = verify(store.path, repair=True)  # model and images from the manifest alone
    assert report.repaired == (name,)
    assert report.changed == ()
    assert report.ok
    assert contents(store.path) == expected
    for other, (inode, time_ns) in others.items():
        assert (other.stat().st_ino, other.stat().st_mtime_ns) == (inode, time_ns)
    assert verify(store.path).ok


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.99])
def test_a_bit_flip_in_a_reduced_state_is_named_and_never_merged(
    small_model: HookedModel, pictures: Path, tmp_path: Path, share: float
) -> None:
    store = run(small_model, pictures, tmp_path / "s")
    expected = contents(store.path)
    path = store.path / "reduced/00001.h5"
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 16
    path.write_bytes(data)
    (store.path / "shards/00003.h5").unlink()  # so that the pass has something to do
    with pytest.raises(StoreCorrupted, match=r"reduced/00001\.h5: its checksum differs.*--repair"):
        run(small_model, pictures, tmp_path / "s")
    assert verify(store.path, repair=True, model=small_model, images=pictures).ok
    assert contents(store.path) == expected


def test_reading_rows_with_a_bit_flip_raises(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    store = run(small_model, pictures, tmp_path / "s")
    path = store.path / "shards/00002.h5"
    with h5py.File(path) as file:
        place = file["layers/layer1/pooled"].id.get_offset()
    data = bytearray(path.read_bytes())
    data[place + 9] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreCorrupted, match=r"shards/00002\.h5") as caught:
        store.layer("layer1").pooled[24:30]
    assert caught.value.shard == "shards/00002.h5"


def test_a_repair_reports_images_that_have_changed_since(
    small_model: HookedModel, own_pictures: Path, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 300, 300, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    store = run(small_model, ArraySource(tmp_path / "a.npy"), tmp_path / "s")
    pixels[3, 100:110] = 255 - pixels[3, 100:110]  # the fingerprint may not sample these
    np.save(tmp_path / "b.npy", pixels)
    (store.path / "shards/00000.h5").unlink()
    changed = ArraySource(tmp_path / "b.npy")
    original = ArraySource(tmp_path / "a.npy")
    changed.fingerprint = original.fingerprint  # type: ignore[method-assign]
    report = verify(store.path, repair=True, images=changed)
    assert report.changed == ("shards/00000.h5",)


def test_another_model_preprocessing_or_collector_is_refused_with_the_difference(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    run(small_model, pictures, tmp_path / "s")
    before = contents(tmp_path / "s")
    other = load_model("random:test_resnet?seed=1&img_size=32")
    with pytest.raises(StoreMismatch, match=r"seed=0&img_size=32, this run .*seed=1") as caught:
        run(other, pictures, tmp_path / "s")
    assert [line.split(":")[0] for line in caught.value.differences] == ["model", "weights"]
    same_name = load_model("random:test_resnet?seed=1&img_size=32")
    same_name.id = small_model.id
    with pytest.raises(StoreMismatch, match="weights: the store has"):
        run(same_name, pictures, tmp_path / "s")
    larger = HookedModel(small_model.module, input_size=(3, 48, 48), id=small_model.id)
    with pytest.raises(StoreMismatch, match=r"preprocessing input_size: the store has \[3, 32"):
        run(larger, pictures, tmp_path / "s")
    for options, reason in (
        ({"top_k": 9}, r"collector top-k parameters: the store has \{'k': 6\}, this run \{'k': 9"),
        ({"batch_size": 6}, "batch size: the store has 5, this run 6"),
        ({"shard_size": 13}, "shard size: the store has 12, this run 13"),
        ({"threads": 2}, "threads: the store has 1, this run 2"),
        ({"layers": ["layer1"]}, "layers: the store has"),
        ({"maps": ["layer1"]}, "layer layer1 kinds"),
    ):
        with pytest.raises(StoreMismatch, match=reason):
            run(small_model, pictures, tmp_path / "s", **options)
    assert contents(tmp_path / "s") == before


def test_other_library_versions_can_read_a_store_but_not_complete_it(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    store = run(small_model, pictures, tmp_path / "s")
    older = store.manifest.model_copy(
        update={"versions": {**store.manifest.versions, "torch": "1"}}
    )
    older.write(store.path)
    assert run(small_model, pictures, tmp_path / "s").complete
    older.without_shards({1}).write(store.path)
    with pytest.raises(StoreMismatch, match="torch version: the store has 1, this run"):
        run(small_model, pictures, tmp_path / "s")


def test_a_worker_whose_connection_is_closed_at_the_end_prints_nothing(capsys) -> None:
    for error in (ConnectionResetError("gone"), EOFError()):
        loader._print_error(type(error), error, None)
    assert capsys.readouterr().err == ""
    loader._print_error(ValueError, ValueError("odd"), None)
    assert capsys.readouterr().err == "ValueError: odd\n"


def test_ctrl_c_ends_the_pass_without_leftovers(pictures: Path, tmp_path: Path) -> None:
    code = f"""
import os, signal, threading, time
from pathlib import Path
from timmscope import load_model
from timmscope.mining import mine
out = Path({str(tmp_path / "s")!r})
def interrupt():
    while not (out / "shards/00000.h5").exists():
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
model = load_model("random:test_resnet?seed=0&img_size=32")
try:
    mine(model, {str(pictures)!r}, out, workers=2, batch_size=2, shard_size=2)
except KeyboardInterrupt:
    print("stopped")
"""
    done = run_code(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped\n", "")
    assert not list(tmp_path.rglob("*.tmp"))
    assert not Store.open(tmp_path / "s").complete


def test_rows_computed_before_an_error_are_written_even_by_a_slow_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()
    monkeypatch.setattr(writer, "crash", lambda *_: failed.wait(10))
    monkeypatch.setattr(writer, "_QUEUE_SIZE", 8)
    reduce, calls = pipeline.reduce_batch, iter(range(8))

    def reduce_some(*arguments: Any) -> Any:
        if next(calls) == 6:
            failed.set()
            raise RuntimeError("no more")
        return reduce(*arguments)

    monkeypatch.setattr(pipeline, "reduce_batch", reduce_some)
    with pytest.raises(RuntimeError, match="no more"):
        mine(
            tiny_model(), tiny_pictures(tmp_path), tmp_path / "s.scope",
            layers=["act2"], batch_size=3, shard_size=6, workers=0,
        )  # fmt: skip
    assert sorted(Store.open(tmp_path / "s.scope").manifest.shards) == [0, 1, 2]


def interrupted(
    monkeypatch: pytest.MonkeyPatch, model: HookedModel, pictures: Path, out: Path, batches: int
) -> int:
    """Interrupt a pass at a batch, and return the number of batches that resuming it runs."""
    reduce = pipeline.reduce_batch
    counts = [0, 0]
    for again in (0, 1):

        def reduce_some(*arguments: Any, again: int = again) -> Any:
            counts[again] += 1
            if not again and counts[0] > batches:
                raise KeyboardInterrupt
            return reduce(*arguments)

        monkeypatch.setattr(pipeline, "reduce_batch", reduce_some)
        if again:
            run(model, pictures, out, shard_size=64, maps=["layer1"])
        else:
            with pytest.raises(KeyboardInterrupt):
                run(model, pictures, out, shard_size=64, maps=["layer1"])
            assert not list(out.rglob("*.tmp"))
            assert not Store.open(out).manifest.shards
    monkeypatch.setattr(pipeline, "reduce_batch", reduce)
    return counts[1]


def test_finished_batches_of_an_unfinished_shard_are_not_mined_again(
    small_model: HookedModel, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 images in batches of 5 make one shard of 8 batches."""
    whole = contents(
        run(small_model, pictures, tmp_path / "s", shard_size=64, maps=["layer1"]).path
    )
    for batches in (0, 3, 7):
        out = tmp_path / str(batches)
        assert interrupted(monkeypatch, small_model, pictures, out, batches) == 8 - batches
        assert contents(out) == whole


@pytest.mark.parametrize("share", [0.0, 0.4, 0.999])
def test_damaged_batches_of_an_unfinished_shard_are_mined_again(
    share: float, small_model: HookedModel, pictures: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole = contents(run(small_model, pictures, tmp_path / "s", shard_size=64).path)
    reduce = pipeline.reduce_batch
    calls = iter(range(100))

    def reduce_six(*arguments: Any) -> Any:
        if next(calls) == 6:
            raise KeyboardInterrupt
        return reduce(*arguments)

    monkeypatch.setattr(pipeline, "reduce_batch", reduce_six)
    with pytest.raises(KeyboardInterrupt):
        run(small_model, pictures, tmp_path / "t", shard_size=64)
    monkeypatch.setattr(pipeline, "reduce_batch", reduce)
    path = tmp_path / "t/shards/00000.partial"
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 4
    path.write_bytes(data)
    run(small_model, pictures, tmp_path / "t", shard_size=64)
    assert contents(tmp_path / "t") == whole


def test_changed_images_are_refused_and_named(
    small_model: HookedModel, own_pictures: Path, tmp_path: Path
) -> None:
    run(small_model, own_pictures, tmp_path / "s")
    source = FolderSource(own_pictures)
    first = source.file(0)
    pixels = first.read_bytes()
    Image.new("RGB", (9, 9)).save(first)
    with pytest.raises(StoreMismatch, match="same names, but contents, labels or order changed"):
        run(small_model, own_pictures, tmp_path / "s")
    first.write_bytes(pixels)
    run(small_model, own_pictures, tmp_path / "s")
    first.rename(first.with_name("new.png"))
    with pytest.raises(StoreMismatch, match=r"1 no longer there, as 'class0/0\.png'") as caught:
        run(small_model, own_pictures, tmp_path / "s")
    assert any("1 new, as 'class0/new.png'" in line for line in caught.value.differences)


def test_images_that_vanish_during_the_pass_are_reported_and_do_not_end_it(
    small_model: HookedModel, own_pictures: Path, tmp_path: Path
) -> None:
    source = FolderSource(own_pictures)
    source.file(20).unlink()  # after listing
    store = run(small_model, source, tmp_path / "s")
    assert [i for i, _, _ in store.images.unreadable()] == [5, 20, 33]
    assert "no such file" in store.images.reasons[20]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StoreError, match=r"cannot lock files.*choose a folder on a local disk"):
        StoreLock(tmp_path).__enter__()


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES, errno.ESTALE])
def test_a_machine_that_fails_is_not_taken_for_damage(
    small_model: HookedModel,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    store = run(small_model, pictures, tmp_path / "s")

    def fail(path: Path, limit: int | None = None) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(shards, "open_regular", fail)
    for use in (lambda: store.layer("layer1").pooled[0], lambda: store.images.status):
        with pytest.raises(
            StoreError, match=r"00000\.h5: cannot be read now .*try again"
        ) as caught:
            use()
        assert not isinstance(caught.value, StoreCorrupted)


def test_a_shard_that_another_program_has_locked_is_read(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    """HDF5 locks files, and takes a lock of another program for damage."""
    store = run(small_model, pictures, tmp_path / "s")
    expected = np.asarray(store.layer("layer1").pooled)
    with (store.path / "shards/00000.h5").open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        np.testing.assert_array_equal(Store.open(store.path).layer("layer1").pooled, expected)
        assert verify(store.path).ok


@pytest.mark.parametrize("part", [None, (2, 3)])
def test_a_repair_that_died_at_its_end_is_finished_by_the_next(
    small_model: HookedModel,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: tuple[int, int] | None,
) -> None:
    """The manifest of a store is written then, that of a part is not; the journal is there."""
    options = {} if part is None else {"ranges": part, "shard_size": 5}
    store = run(small_model, pictures, tmp_path / "s", **options)
    expected = contents(store.path)
    number = min(store.manifest.shards)
    (store.path / f"shards/{number:05d}.h5").unlink()

    def die(folder: Path) -> None:
        raise KeyboardInterrupt

    if part is None:
        monkeypatch.setattr(reductions, "end_journal", die)
    else:  # after the last shard, before its manifest
        monkeypatch.setattr(sys.modules[mine.__module__], "remove_partial_shards", die)
    with pytest.raises(KeyboardInterrupt):
        verify(store.path, repair=True, model=small_model)
    monkeypatch.undo()
    assert (store.path / "journal.jsonl").exists()
    assert verify(store.path, repair=True).ok
    assert contents(store.path) == expected


def test_a_killed_repair_is_a_finding(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    """A repair that dies before it merges leaves all shards and no merged state."""
    store = run(small_model, pictures, tmp_path / "s")
    expected = contents(store.path)
    store.manifest.without_shards(set()).write(store.path)
    (store.path / "reduced/merged.h5").unlink()
    report = verify(store.path)
    assert not report.ok
    assert [item.file for item in report.damage] == ["reduced/merged.h5"]
    report = verify(store.path, repair=True)
    assert report.ok
    assert report.repaired == ("reduced/merged.h5",)
    assert contents(store.path) == expected


def test_a_second_process_is_refused_but_not_after_the_first_has_died(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "s").mkdir()
    hold = f"""
import time
from pathlib import Path
from timmscope.store.lock import StoreLock
with StoreLock(Path({str(tmp_path / "s")!r})):
    print("held", flush=True)
    time.sleep(600)
"""
    holder = Running(hold)
    holder.wait_for("held")
    with pytest.raises(StoreError, match=f"process {holder.pid} is writing to this store"):
        run(small_model, pictures, tmp_path / "s")
    holder.signal(signal.SIGKILL)
    holder.done()
    assert run(small_model, pictures, tmp_path / "s").complete


def test_a_second_mine_command_on_one_store_is_refused_in_one_line(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    slow = f"""
import time
from timmscope import load_model, mine
from timmscope.images import FolderSource
class Slow(FolderSource):
    def load(self, index):
        if index == 15:
            print("mining", flush=True)
            time.sleep(600)
        return super().load(index)
mine(load_model("random:test_resnet?seed=0&img_size=32"), Slow({str(pictures)!r}),
     {str(tmp_path / "s")!r}, **{SETTINGS!r})
"""
    first = Running(slow)
    try:
        first.wait_for("mining")
        second = run_command("mine", small_model.id, pictures, "-o", tmp_path / "s", "--workers", 0)
        assert second.returncode == 2
        assert f"process {first.pid} is writing to this store" in second.stderr
        assert second.stderr.count("\n") == 1
    finally:
        first.signal(signal.SIGKILL)
        first.done()
    assert run(small_model, pictures, tmp_path / "s").complete
    assert verify(tmp_path / "s").ok


def test_a_forked_worker_does_not_keep_the_lock_of_its_dead_parent(tmp_path: Path) -> None:
    code = f"""
import os, signal, time
from pathlib import Path
from timmscope.store.lock import StoreLock
with StoreLock(Path({str(tmp_path)!r})):
    if os.fork() == 0:
        os.close(1); os.close(2)
        time.sleep(20)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    run_code(code)
    time.sleep(0.2)
    with StoreLock(tmp_path):
        pass


def test_a_full_disk_is_a_one_line_error_and_loses_nothing(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    whole = run(small_model, pictures, tmp_path / "whole", maps=["layer2"])
    rooms = (0, 2000, 20_000, 40_000)
    assert max(path.stat().st_size for path in whole.path.rglob("*")) > max(rooms)
    code = f"""
import resource
from timmscope import load_model, TimmscopeError
from timmscope.mining import mine
model = load_model("random:test_resnet?seed=0&img_size=32")
model.layers
for room in {rooms}:
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, {resource.RLIM_INFINITY}))
    out = {str(tmp_path)!r} + f"/full{{room}}"
    try:
        mine(model, {str(pictures)!r}, out, maps=["layer2"], **{SETTINGS!r})
    except TimmscopeError as error:
        print(type(error).__name__, error)
"""
    done = run_code(code)
    assert done.returncode == 0, done.stderr  # libhdf5 alone would have died of signal 11
    assert done.stderr == ""
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["StoreError"] * len(rooms)
    assert done.stdout.count("the disk is full") == len(rooms)
    assert not list(tmp_path.rglob("*.tmp"))
    for room in rooms:
        out = tmp_path / f"full{room}"
        run(small_model, pictures, out, maps=["layer2"])
        assert contents(out) == contents(whole.path)


def test_no_room_in_shared_memory_is_a_one_line_error_instead_of_an_endless_wait(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    code = f"""
import resource
from timmscope import load_model, TimmscopeError
from timmscope.mining import mine
model = load_model("random:test_resnet?seed=0&img_size=32")
model.layers
resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, {resource.RLIM_INFINITY}))
try:
    mine(model, {str(pictures)!r}, {str(tmp_path / "s")!r}, workers=1, batch_size=4, shard_size=4)
except TimmscopeError as error:
    print(type(error).__name__, error)
"""
    done = run_code(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("StoreError no room in shared memory")
    assert "workers=0" in done.stdout
    assert mine(small_model, pictures, tmp_path / "s", workers=0).complete


def test_no_socket_for_a_worker_is_a_one_line_error_instead_of_an_endless_wait(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    deep = tmp_path / ("x" * 120)  # a socket's path has at most 107 bytes
    deep.mkdir()
    code = f"""
from timmscope import load_model, StoreError
from timmscope.mining import mine
model = load_model("random:test_resnet?seed=0&img_size=32")
try:
    mine(model, {str(pictures)!r}, {str(tmp_path / "s")!r}, workers=1, batch_size=4, shard_size=4)
    print("complete")  # later Pythons choose a shorter folder themselves
except StoreError as error:
    print(error)
"""
    done = run_code(code, TMPDIR=str(deep))
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert line == "complete" or f"{deep} (AF_UNIX path too long); set TMPDIR to another" in line
    assert mine(small_model, pictures, tmp_path / "s", workers=0).complete


def test_workers_start_safely_after_openmp_and_faiss_have_run(
    pictures: Path, tmp_path: Path
) -> None:
    code = f"""
import faiss, numpy as np, torch
from timmscope import load_model
from timmscope.mining import mine
faiss.omp_set_num_threads(2)
index = faiss.IndexFlatL2(32)
rows = np.random.default_rng(0).random((5000, 32), dtype=np.float32)
index.add(rows); index.search(rows[:500], 5)
torch.set_num_threads(2); torch.randn(500, 500) @ torch.randn(500, 500)
torch.randn(10**6).exp().sum()
torch.set_num_threads(1)
model = load_model("random:test_resnet?seed=0&img_size=32")
store = mine(model, {str(pictures)!r}, {str(tmp_path / "s")!r}, **{ {**SETTINGS, "workers": 2}!r})
print(store.complete)
"""
    done = run_code(code, OMP_NUM_THREADS="2")
    assert done.stdout == "True\n", done.stderr


def test_workers_may_be_spawned(small_model: HookedModel, pictures: Path, tmp_path: Path) -> None:
    one = run(small_model, pictures, tmp_path / "a")
    two = run(small_model, pictures, tmp_path / "b", workers=1, start_method="spawn")
    assert contents(one.path) == contents(two.path)
