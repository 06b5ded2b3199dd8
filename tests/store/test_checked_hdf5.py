"""A block that was lost, changed or moved is noticed, and nothing outside the file is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from timmscope.store.checked_hdf5 import (
    BLOCK_BYTES,
    CheckedFile,
    StreamedArray,
    write_array,
)

ROWS = np.random.default_rng(0).normal(size=(1000, 16, 4)).astype(np.float32)  # 256 bytes per row
PER_BLOCK = 64


@contextmanager
def checked(path: Path, place: str = "pass/a.h5") -> Iterator[CheckedFile]:
    with path.open("rb") as raw, closing(CheckedFile(raw, place, path.stat().st_size)) as file:
        yield file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "a.h5", "w", libver=("v110", "v110")) as file:
        write_array(file, "layers/x/rows", ROWS, "pass/a.h5")
        write_array(file, "layers/y/rows", ROWS, "pass/a.h5")
        write_array(file, "words", np.array([b"a", b"bcd", b""]), "pass/a.h5")
        write_array(file, "scalar", np.float64(2.5), "pass/a.h5")
        write_array(file, "empty", np.empty((0, 3), np.int32), "pass/a.h5")
    return tmp_path / "a.h5"


def offset(path: Path, name: str) -> int:
    with h5py.File(path) as file:
        return int(file[name].id.get_offset())


def read_all(path: Path, place: str = "pass/a.h5") -> dict[str, np.ndarray]:
    with checked(path, place) as reader:
        return {name: reader.read(name) for name in sorted(reader.arrays())}


def test_everything_that_is_written_is_read(path: Path) -> None:
    found = read_all(path)
    assert list(found) == ["empty", "layers/x/rows", "layers/y/rows", "scalar", "words"]
    np.testing.assert_array_equal(found["layers/x/rows"], ROWS)
    assert found["words"].tolist() == [b"a", b"bcd", b""]
    assert found["scalar"] == 2.5
    assert found["empty"].shape == (0, 3)


def test_a_checksum_is_that_of_the_format_page(path: Path) -> None:
    with h5py.File(path) as file:
        sums = file["layers/x/rows"].attrs["sums"]
    assert len(sums) == -(-1000 // PER_BLOCK)
    seed = xxhash.xxh3_64_intdigest(b"pass/a.h5\0layers/x/rows")
    block = ROWS[3 * PER_BLOCK : 4 * PER_BLOCK].tobytes()
    assert len(block) == BLOCK_BYTES
    assert sums[3] == xxhash.xxh3_64_intdigest(block, (seed + 3) % 2**64)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 999), max_size=40), st.integers(0, 1000), st.integers(0, 1000))
def test_rows_are_read_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int], start: int, stop: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.h5"
    if not path.exists():
        with h5py.File(path, "w") as file:
            write_array(file, "rows", ROWS, "p")
    like = (ROWS.shape, ROWS.dtype)
    with checked(path, "p") as reader:
        chosen = np.array(ids, np.int64)
        np.testing.assert_array_equal(reader.rows("rows", chosen, like=like), ROWS[chosen])
        np.testing.assert_array_equal(reader.read("rows", start, stop, like=like), ROWS[start:stop])


ZERO_BLOCK = bytes(BLOCK_BYTES)


def swap_two_blocks(data: bytearray, low: int) -> None:
    one, two = slice(low, low + BLOCK_BYTES), slice(low + BLOCK_BYTES, low + 2 * BLOCK_BYTES)
    data[one], data[two] = data[two], data[one]


def lose_a_block(data: bytearray, low: int) -> None:
    data[low : low + BLOCK_BYTES] = ZERO_BLOCK


def swap_zeros_and_ones(data: bytearray, low: int) -> None:
    """Fletcher-32 does not notice that a 16-bit word changes from 0x0000 to 0xFFFF."""
    assert data[low + 512 : low + 514] == b"\0\0"
    data[low + 512 : low + 514] = b"\xff\xff"


@pytest.mark.parametrize("damage", [swap_two_blocks, lose_a_block, swap_zeros_and_ones])
def test_damage_that_fletcher_32_does_not_notice_is_noticed(
    tmp_path: Path, damage: Callable[[bytearray, int], None]
) -> None:
    rows = ROWS.copy()
    rows[2, 0, 0] = 0
    rows[PER_BLOCK : 2 * PER_BLOCK] = 0  # a block of zeros may be lost to another one
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        write_array(file, "rows", rows, "p")
    low = offset(path, "rows")
    data = bytearray(path.read_bytes())
    damage(data, low)
    path.write_bytes(data)
    with checked(path, "p") as reader:
        with pytest.raises(ValueError, match="rows does not match its checksums"):
            reader.read("rows", 5, 6)
        with pytest.raises(ValueError, match="rows does not match its checksums"):
            reader.rows("rows", np.array([5]), like=(rows.shape, rows.dtype))
        np.testing.assert_array_equal(reader.read("rows", 500, 700), rows[500:700])


def test_lost_rows_and_lost_checksums_together_are_noticed(path: Path) -> None:
    """A lost write can hit both; zeros have a checksum that is not zero."""
    data = bytearray(path.read_bytes())
    low = offset(path, "layers/x/rows")
    data[low : low + ROWS.nbytes] = bytes(ROWS.nbytes)
    path.write_bytes(data)
    with h5py.File(path, "r+") as file:
        file["layers/x/rows"].attrs.modify("sums", np.zeros(16, np.uint64))
    with pytest.raises(ValueError, match="layers/x/rows does not match"):
        read_all(path)


def test_arrays_of_another_place_are_noticed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    one, other = offset(path, "layers/x/rows"), offset(path, "layers/y/rows")
    data[one : one + ROWS.nbytes] = data[other : other + ROWS.nbytes]
    path.write_bytes(data)
    with h5py.File(path, "r+") as file:
        file["layers/x/rows"].attrs.modify("sums", file["layers/y/rows"].attrs["sums"])
    with pytest.raises(ValueError, match="layers/x/rows does not match"):
        read_all(path)
    with pytest.raises(ValueError, match="does not match its checksums"):
        read_all(path, place="pass/b.h5")


def test_a_streamed_array_is_read_like_any_other(tmp_path: Path) -> None:
    maps = np.random.default_rng(1).normal(size=(9, 5, 32, 32)).astype(np.float32)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        streamed = StreamedArray(file, "maps", maps.shape, "float32", "p")
        for start in (0, 4, 8):
            streamed.write(start, maps[start : start + 4])
        streamed.finish()
    with checked(path, "p") as reader:
        np.testing.assert_array_equal(reader.read("maps"), maps)
        reader.check("maps")


def external_link(file: h5py.File, elsewhere: Path) -> None:
    file["layers/x/rows"] = h5py.ExternalLink(elsewhere, "rows")


def soft_link(file: h5py.File, elsewhere: Path) -> None:
    write_array(file, "other", ROWS, "p")
    file["layers/x/rows"] = h5py.SoftLink("/other")


def link_to_a_group(file: h5py.File, elsewhere: Path) -> None:
    file["layers"] = h5py.ExternalLink(elsewhere, "layers")


def external_storage(file: h5py.File, elsewhere: Path) -> None:
    parts = [(elsewhere, 0, ROWS.nbytes)]
    file.create_dataset("layers/x/rows", ROWS.shape, "float32", external=parts)


def virtual(file: h5py.File, elsewhere: Path) -> None:
    layout = h5py.VirtualLayout(ROWS.shape, "float32")
    layout[:] = h5py.VirtualSource(elsewhere, "rows", shape=ROWS.shape)
    file.create_virtual_dataset("layers/x/rows", layout)


def objects(file: h5py.File, elsewhere: Path) -> None:
    file.create_dataset("layers/x/rows", ROWS.shape[:1], h5py.string_dtype())


def references(file: h5py.File, elsewhere: Path) -> None:
    file.create_dataset("layers/x/rows", ROWS.shape[:1], h5py.ref_dtype)


def compressed(file: h5py.File, elsewhere: Path) -> None:
    file.create_dataset("layers/x/rows", data=np.zeros_like(ROWS), compression="gzip")


def larger_than_the_file(file: h5py.File, elsewhere: Path) -> None:
    file.create_dataset("layers/x/rows", (10**10, 16), "float32")  # HDF5 writes nothing yet


HOSTILE = (
    external_link,
    soft_link,
    link_to_a_group,
    external_storage,
    virtual,
    objects,
    references,
    compressed,
    larger_than_the_file,
)


@pytest.mark.parametrize("make", HOSTILE, ids=[make.__name__ for make in HOSTILE])
def test_only_plain_arrays_of_the_file_itself_are_read(
    make: Callable[[h5py.File, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere.h5"
    with h5py.File(elsewhere, "w") as file:
        write_array(file, "rows", ROWS, "p")
        write_array(file, "layers/x/rows", ROWS, "p")
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        make(file, elsewhere)
    elsewhere.rename(tmp_path / "moved.h5")  # whoever opens it fails in another way
    for use in (
        lambda reader: reader.read("layers/x/rows"),
        lambda reader: reader.read("layers/x/rows", 3, 4),
        lambda reader: reader.rows("layers/x/rows", np.array([1]), like=(ROWS.shape, ROWS.dtype)),
    ):
        with checked(path, "p") as reader, pytest.raises(ValueError, match="layers"):
            use(reader)


def test_another_shape_or_type_than_expected_is_refused(path: Path) -> None:
    expected: tuple[tuple[Any, ...], ...] = ((1000, 64), ROWS.shape[:1], (999, 16, 4))
    with checked(path) as reader:
        for shape in expected:
            with pytest.raises(ValueError, match="expected float32"):
                reader.read("layers/x/rows", like=(shape, ROWS.dtype))
        with pytest.raises(ValueError, match="expected float64"):
            reader.read("layers/x/rows", like=(ROWS.shape, np.dtype("f8")))
