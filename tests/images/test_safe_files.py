"""Files that lead elsewhere are refused before anything else is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from timmscope.safe_files import (
    DEEPEST,
    LARGEST_CHUNK,
    UnsafeFile,
    hdf5_datasets,
    hdf5_member,
    open_regular,
    read_npy,
    read_regular,
    require_plain,
    require_stored,
)


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A pipe without a writer: whoever opens it waits for ever."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_only_regular_files_are_opened(pipe: Path) -> None:
    file = pipe.with_name("file")
    file.write_bytes(b"12345")
    with open_regular(file, limit=5) as opened:
        assert opened.read() == b"12345"
    link = pipe.with_name("link")
    link.symlink_to(pipe)
    for special in (pipe, link, Path(os.devnull)):
        with pytest.raises(UnsafeFile, match="a pipe or a device"):
            open_regular(special)
    with pytest.raises(IsADirectoryError):
        open_regular(pipe.parent)
    with pytest.raises(FileNotFoundError):
        open_regular(pipe.with_name("absent"))


def test_a_file_above_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular(tmp_path / "file", 5) == b"12345"
    for read in (open_regular, read_regular):
        with pytest.raises(UnsafeFile, match="5 bytes, expected at most 4"):
            read(tmp_path / "file", 4)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_file_that_understates_its_size_is_read_up_to_the_limit() -> None:
    with pytest.raises(UnsafeFile, match="more than 100 bytes"):
        read_regular("/proc/self/status", 100)


@pytest.fixture
def hostile(pipe: Path) -> Iterator[h5py.File]:
    """Data sets and links of every kind that lead to the pipe, beside sound ones."""
    elsewhere = str(pipe)
    with h5py.File(pipe.with_name("file.h5"), "w", libver="latest") as file:
        file["sound/numbers"] = np.arange(3)
        file["sound/loop"] = file["/"]
        file["text"] = np.array([b"a", b"bc"])
        file["soft"] = h5py.SoftLink("/sound")
        file["external"] = h5py.ExternalLink(elsewhere, "/")
        file.create_dataset("raw", (3,), "u1", external=[(elsewhere, 0, 3)])
        file.create_dataset("objects", (3,), h5py.string_dtype())
        file.create_dataset("references", (3,), h5py.ref_dtype)
        layout = h5py.VirtualLayout((3,), "u1")
        layout[:] = h5py.VirtualSource(elsewhere, "x", shape=(3,))
        file.create_virtual_dataset("virtual", layout)
        # HDF5 opens the sources of this one as soon as somebody asks for its shape.
        endless = h5py.h5s.create_simple((3,), (h5py.h5s.UNLIMITED,))
        endless.select_hyperslab((0,), (1,), (1,), (h5py.h5s.UNLIMITED,))
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_virtual(endless, elsewhere.encode(), b"x", endless)
        h5py.h5d.create(file.id, b"endless", h5py.h5t.NATIVE_UINT8, endless, created)
        yield file


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("soft/numbers", "a soft link"),
        ("external", "an external link"),
        ("external/numbers", "an external link"),
        ("sound/loop/raw", "external storage"),
        ("virtual", "a virtual data set"),
        ("endless", "a virtual data set"),
        ("objects", "variable length"),
        ("references", "references"),
    ],
)
def test_hdf5_that_reaches_outside_is_refused(hostile: h5py.File, path: str, what: str) -> None:
    with pytest.raises(UnsafeFile, match=what):
        hdf5_member(hostile, path)


def test_hdf5_inside_the_file_is_read(hostile: h5py.File) -> None:
    assert hdf5_member(hostile, "/sound/loop/sound/numbers")[2] == 2
    assert hdf5_member(hostile, "text")[1] == b"bc"
    for absent in ("sound/nothing", "sound/../text", "text/below"):
        with pytest.raises(KeyError):
            hdf5_member(hostile, absent)


def test_a_walk_passes_over_links_and_ends(hostile: h5py.File) -> None:
    names = {name for name, _ in hdf5_datasets(hostile)}
    assert names == {"sound/numbers", "text", "raw", "objects", "references", "virtual", "endless"}
    require_plain(hostile["sound/numbers"])
    with pytest.raises(UnsafeFile):
        require_plain(hostile)


def test_groups_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "deep.h5", "w") as file:
        file.create_group("/g" * DEEPEST)["x"] = 1
        assert len(list(hdf5_datasets(file))) == 1
        file.create_group("/g" * (DEEPEST + 1))
        with pytest.raises(UnsafeFile, match="inside each other"):
            list(hdf5_datasets(file))


def test_values_that_were_never_written_are_no_values(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "claims.h5", "w") as file:
        rows = file.create_dataset("rows", (10, 4), "u2", chunks=(4, 4), compression="gzip")
        rows[:8] = 1
        with pytest.raises(UnsafeFile, match="claims 3 chunks, the file holds 2"):
            require_stored(rows)
        rows[8:] = 1
        require_stored(rows)
        with pytest.raises(UnsafeFile, match="claims 20000000000 bytes, the file holds 0"):
            require_stored(file.create_dataset("huge", (10**10,), "u2"))
        wide = file.create_dataset("wide", (LARGEST_CHUNK,), "u2", chunks=(LARGEST_CHUNK,))
        with pytest.raises(UnsafeFile, match="has chunks of"):
            require_stored(wide)
        file["empty"], file["none"] = np.zeros((0, 3)), h5py.Empty("f4")
        require_stored(file["empty"])
        require_stored(file["none"])


@pytest.mark.parametrize(
    "array", [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), 1.5]
)
def test_an_array_file_is_read_whole(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), array)


def test_an_array_file_that_claims_more_than_it_holds_is_refused(pipe: Path) -> None:
    file = pipe.with_name("a.npy")
    for shape, reason in (((10**18,), "claims"), ((-1,), "no negative length")):
        with file.open("wb") as raw:
            header = {"descr": "<f8", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(raw, header)
        with pytest.raises(UnsafeFile, match=reason):
            read_npy(file)
    np.save(file, np.array([None]), allow_pickle=True)
    with pytest.raises(UnsafeFile, match="Python objects"):
        read_npy(file)
    file.write_bytes(b"nothing")
    with pytest.raises(UnsafeFile, match=r"not a \.npy file"):
        read_npy(file)
    with pytest.raises(UnsafeFile, match="a pipe"):
        read_npy(pipe)
