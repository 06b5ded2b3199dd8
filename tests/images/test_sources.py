"""Image sources give the order, names, labels and fingerprint of images in any kind of file."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from timmscope import reporting
from timmscope.images import (
    ArraySource,
    FolderSource,
    ImageSource,
    ListSource,
    StringTable,
    WebDatasetSource,
    formats,
    open_images,
)
from timmscope_registry import ImageError


def picture(value: int, size: int = 4) -> Image.Image:
    return Image.new("RGB", (size, size), (value, value, value))


def value(source: ImageSource, index: int) -> int:
    return int(np.asarray(source.load(index))[0, 0, 0])


def fill(root: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path, "PNG")
    return root


def test_a_folder_is_read_in_natural_order_with_its_subfolders_as_labels(tmp_path: Path) -> None:
    fill(tmp_path, ["b/10.png", "b/2.png", "a/1.png", "top.png", "b/deep/3.PNG"])
    source = FolderSource(tmp_path)
    assert list(source.paths) == ["a/1.png", "b/2.png", "b/10.png", "b/deep/3.PNG", "top.png"]
    assert source.labels is not None
    assert list(source.labels) == ["a", "b", "b", "deep", None]
    assert [value(source, i) for i in range(5)] == [2, 1, 0, 4, 3]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    assert FolderSource(fill(tmp_path, ["1.png"])).labels is None


def test_hidden_files_and_files_that_are_no_images_are_ignored(tmp_path: Path) -> None:
    fill(tmp_path, ["1.png", ".hidden.png", ".cache/2.png"])
    (tmp_path / "notes.txt").write_text("x")
    os.mkfifo(tmp_path / "pipe.png")
    assert list(FolderSource(tmp_path).paths) == ["1.png"]


def test_folders_that_timmscope_wrote_are_ignored(tmp_path: Path) -> None:
    fill(tmp_path, ["1.png", "a/2.png", "timmscope-out/top.png", "a/timmscope-out/x/figure.png"])
    fill(tmp_path, ["run.scope/3.png", "scope/4.png"])
    assert list(FolderSource(tmp_path).paths) == ["1.png", "a/2.png", "scope/4.png"]
    assert list(FolderSource(tmp_path / "timmscope-out").paths) == ["top.png"]


def test_symbolic_links_are_followed_except_in_loops(tmp_path: Path) -> None:
    fill(tmp_path, ["data/a/1.png"])
    (tmp_path / "data/a/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/link").symlink_to(tmp_path / "data/a")
    assert list(FolderSource(tmp_path / "data").paths) == ["a/1.png", "link/1.png"]


def test_a_broken_link_is_listed_and_fails_to_load(tmp_path: Path) -> None:
    fill(tmp_path, ["1.png"])
    (tmp_path / "0.png").symlink_to(tmp_path / "gone.png")
    source = FolderSource(tmp_path)
    assert list(source.paths) == ["0.png", "1.png"]
    with pytest.raises(ImageError, match="no such file"):
        source.load(0)
    assert source.fingerprint()


def test_any_file_name_can_be_read(tmp_path: Path) -> None:
    names = ["né\nw line.png", "日本.png", os.fsdecode(b"latin\xe9.png"), "tab\t.png"]
    source = FolderSource(fill(tmp_path, names))
    assert sorted(source.paths) == sorted(names)
    assert sorted(value(source, i) for i in range(4)) == [0, 1, 2, 3]


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no images in this folder"):
        FolderSource(tmp_path)
    with pytest.raises(ImageError, match="no such folder"):
        FolderSource(tmp_path / "absent")


def test_the_fingerprint_depends_on_names_sizes_and_contents_but_not_on_the_folder(
    tmp_path: Path,
) -> None:
    first = fill(tmp_path / "one", ["1.png", "2.png"])
    shutil.copytree(first, tmp_path / "two")
    start = FolderSource(first).fingerprint()
    assert FolderSource(tmp_path / "two").fingerprint() == start
    data = bytearray((first / "1.png").read_bytes())
    data[-3] ^= 1
    (first / "1.png").write_bytes(bytes(data))
    assert FolderSource(first).fingerprint() != start
    (tmp_path / "two/2.png").rename(tmp_path / "two/3.png")
    assert FolderSource(tmp_path / "two").fingerprint() != start


def test_paths_in_a_list_are_relative_to_it_and_may_have_labels(tmp_path: Path) -> None:
    fill(tmp_path, ["x/0.png", "x/1.png"])
    listing = tmp_path / "x/list.txt"
    listing.write_text(f"1.png\tdog\r\n\n{tmp_path}/x/0.png\nmissing.png\tcat\n")
    source = ListSource(listing)
    assert list(source.paths) == ["1.png", f"{tmp_path}/x/0.png", "missing.png"]
    assert source.labels is not None
    assert list(source.labels) == ["dog", None, "cat"]
    assert value(source, 0) == 1
    assert value(source, 1) == 0
    with pytest.raises(ImageError, match="no such file"):
        source.load(2)
    listing.write_text("\n")
    with pytest.raises(ImageError, match="names no image"):
        ListSource(listing)


RAMP = (np.arange(3 * 4 * 5 * 3) % 256).astype(np.uint8).reshape(3, 4, 5, 3)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".packed.npz", ".h5"])
@pytest.mark.parametrize("kind", ["uint8", "float32", "uint16", "NCHW"])
def test_images_of_an_array_have_its_pixels(tmp_path: Path, suffix: str, kind: str) -> None:
    array = {
        "uint8": RAMP,
        "float32": (RAMP / 255).astype(np.float32),
        "uint16": RAMP.astype(np.uint16) * 257,
        "NCHW": np.ascontiguousarray(np.moveaxis(RAMP, 3, 1)),
    }[kind]
    path = tmp_path / f"a{suffix}"
    labels = np.array(["x", "y", "x"])
    if suffix == ".npy":
        np.save(path, array)
    elif suffix == ".npz":
        np.savez(path, images=array, labels=labels)
    elif suffix == ".packed.npz":
        np.savez_compressed(path, images=array, labels=labels)
    else:
        with h5py.File(path, "w") as file:
            file["group/images"] = array
            file["labels"] = labels.astype("S1")
    source = ArraySource(path)
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 4000
    for row in range(3):
        np.testing.assert_array_equal(np.asarray(source.load(row)), RAMP[row])
        np.testing.assert_array_equal(np.asarray(copy.load(row)), RAMP[row])
    assert source.paths[2] == f"{path.name}[2]"
    if suffix != ".npy":
        assert source.labels is not None
        assert list(source.labels) == ["x", "y", "x"]


def test_float_images_outside_zero_to_one_fail_to_load(tmp_path: Path) -> None:
    array = np.full((3, 2, 2, 3), 0.5, dtype=np.float32)
    array[1, 0, 0, 0] = 1.5
    array[2, 0, 0, 0] = np.nan
    np.save(tmp_path / "a.npy", array)
    source = ArraySource(tmp_path / "a.npy")
    assert value(source, 0) == 128
    for row in (1, 2):
        with pytest.raises(ImageError, match="must lie in"):
            source.load(row)


def test_the_error_for_an_ambiguous_array_file_lists_its_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", first=RAMP, second=RAMP)
    with pytest.raises(ImageError, match=r"first .*second .*\?key="):
        ArraySource(tmp_path / "a.npz")
    assert len(ArraySource(f"{tmp_path}/a.npz?key=second")) == 3
    with pytest.raises(ImageError, match="no array 'third'"):
        ArraySource(f"{tmp_path}/a.npz?key=third")


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, "PNG")
    return buffer.getvalue()


def test_webdataset_tars_are_indexed_with_their_labels(tmp_path: Path) -> None:
    make_tar(tmp_path / "t-10.tar", {"d/9.png": png(9)})
    make_tar(
        tmp_path / "t-2.tar",
        {"d/1.png": png(1), "d/1.cls": b"7\n", "d/1.json": b"{}", "d/0.JPG": png(0)},
    )
    source = WebDatasetSource(tmp_path / "t-*.tar")
    assert list(source.paths) == ["t-2.tar/d/1.png", "t-2.tar/d/0.JPG", "t-10.tar/d/9.png"]
    assert source.labels is not None
    assert list(source.labels) == ["7", None, None]
    copy = pickle.loads(pickle.dumps(source))
    assert [value(copy, i) for i in range(3)] == [1, 0, 9]


def test_images_of_archives_with_one_name_have_distinct_names(tmp_path: Path) -> None:
    for number in (0, 1):
        (tmp_path / f"part-{number}").mkdir()
        make_tar(tmp_path / f"part-{number}" / "t.tar", {"x.png": png(number)})
    source = open_images(f"webdataset:{tmp_path}/part-*/t.tar")
    assert list(source.paths) == ["part-0/t.tar/x.png", "part-1/t.tar/x.png"]
    assert [value(source, row) for row in (0, 1)] == [0, 1]


def test_a_compressed_tar_is_refused_with_advice(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(ImageError, match="uncompressed tar"):
        WebDatasetSource(tmp_path / "a.tar")


def test_a_damaged_member_is_one_unreadable_image(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", {"0.png": png(0)[:40], "1.png": png(1), "2.png": b""})
    source = WebDatasetSource(tmp_path / "a.tar")
    assert value(source, 1) == 1
    for row in (0, 2):
        with pytest.raises(ImageError, match=rf"a.tar/{row}.png"):
            source.load(row)


def test_a_tar_cut_or_damaged_anywhere_is_refused_unless_complete(tmp_path: Path) -> None:
    members = {"0.png": png(0), "0.cls": b"7", "x" * 120 + ".png": png(1), "2.png": png(2)}
    whole = make_tar(tmp_path / "whole.tar", members).read_bytes()
    images = list(WebDatasetSource(tmp_path / "whole.tar").paths)
    assert len(images) == 3
    with tarfile.open(tmp_path / "whole.tar") as archive:
        ends = [member.offset for member in archive.getmembers()]
        end = archive.offset
    cut = tmp_path / "cut.tar"
    for size in sorted({*range(0, end + 512, 97), *ends, *(at + 512 for at in ends), end}):
        cut.write_bytes(whole[:size])
        if size < end + 512:
            with pytest.raises(ImageError, match=r"cut\.tar: .*(cut short after|cannot read this)"):
                WebDatasetSource(cut)
        else:
            assert len(WebDatasetSource(cut)) == 3
    for at in ends[1:]:  # a header whose checksum is wrong ends the archive for tarfile
        cut.write_bytes(whole[: at + 3] + b"\xff" + whole[at + 4 :])
        with pytest.raises(ImageError, match=r"damaged after its member|cannot read this"):
            WebDatasetSource(cut)


def test_loops_of_links_are_listed_and_fail_to_load(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "1.png")
    (tmp_path / "here").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "2.png").symlink_to("3.png")
    (tmp_path / "3.png").symlink_to("2.png")
    source = FolderSource(tmp_path)
    assert list(source.paths) == ["1.png", "2.png", "3.png"]
    with pytest.raises(ImageError, match="Too many levels of symbolic links"):
        source.load(1)


@pytest.mark.parametrize("kind", ["folder", "list", "array", "tar"])
def test_a_source_is_unreachable_only_if_all_its_files_are(tmp_path: Path, kind: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for number in range(40):
        picture(number).save(home / f"{number}.png")
    (home / "l.txt").write_text("\n".join(["absent.png", *(f"{n}.png" for n in range(40))]))
    np.save(home / "a.npy", RAMP)
    for number in range(3):
        make_tar(home / f"{number}.tar", {"x.png": png(number)})
    source = open_images(
        {
            "folder": home,
            "list": home / "l.txt",
            "array": home / "a.npy",
            "tar": f"webdataset:{home}",
        }[kind]
    )
    assert source.unreachable() == ""
    for number in (0, 7, 39):
        (home / f"{number}.png").unlink()
    (home / "0.tar").unlink()
    assert source.unreachable() == ""
    copy = pickle.loads(pickle.dumps(source))
    home.rename(tmp_path / "away")
    assert source.unreachable() == copy.unreachable() == "No such file or directory"
    (tmp_path / "away").rename(home)
    assert copy.unreachable() == ""


def test_only_slow_listings_show_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for number in range(50):
            (tmp_path / folder / f"{number}.jpg").touch()
    seen: list[list[Any]] = []

    class Recorder:
        @contextmanager
        def open(self, description: str, total: int | None) -> Iterator[Any]:
            seen.append([description, total, 0])

            def advance(steps: int) -> None:
                seen[-1][2] += steps

            yield advance

    with reporting(Recorder()):
        monkeypatch.setattr("timmscope.images.presence._PATIENCE_S", 600)
        FolderSource(tmp_path).fingerprint()
        assert seen == []
        monkeypatch.setattr("timmscope.images.presence._PATIENCE_S", 0)
        FolderSource(tmp_path).fingerprint()
    assert seen == [["listing images", None, 102], ["checking images", 100, 100]]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_labels_of_an_array_may_be_text_numbers_or_missing_but_not_pickles(
    tmp_path: Path, save: Any
) -> None:
    for labels, expected in (
        (np.array(["a", "", "b"]), ["a", None, "b"]),
        (np.array([b"a", b"\xff", b""]), ["a", "\udcff", None]),
        (np.array([1.0, np.nan, 2.0]), ["1.0", None, "2.0"]),
        (np.array([3, 0, -1]), ["3", "0", "-1"]),
    ):
        save(tmp_path / "a.npz", images=RAMP, labels=labels)
        read = ArraySource(tmp_path / "a.npz").labels
        assert read is not None
        assert list(read) == expected
    save(tmp_path / "a.npz", images=RAMP, labels=np.array(["a", None, "b"], dtype=object))
    with pytest.raises(ImageError, match="'labels' holds Python objects, which are never unpic"):
        ArraySource(tmp_path / "a.npz")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"], file["labels"] = RAMP, ["a", "", "ü"]
    read = ArraySource(tmp_path / "a.h5").labels
    assert read is not None
    assert list(read) == ["a", None, "ü"]


def test_a_list_in_utf_16_is_refused_and_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "1.png")
    names = tmp_path / "l.txt"
    names.write_bytes("1.png\tü\n".encode("utf-16"))
    with pytest.raises(ImageError, match=r"l\.txt: not a list of images \(it has a NUL byte\)"):
        ListSource(names)
    names.write_bytes("1.png\tü\r\n".encode("utf-8-sig"))
    assert value(ListSource(names), 0) == 1
    assert list(ListSource(names).labels or ()) == ["ü"]


@pytest.mark.parametrize("shape", [(4, 8), (4, 8, 8, 2), (4, 2, 8, 8, 3), (4, 5, 8, 8)])
def test_the_error_for_a_wrong_shape_names_the_expected_shapes(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    with pytest.raises(ImageError, match=r"holds \(4, .*expected images of shape \(N, H, W, 3\)"):
        ArraySource(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.zeros((4, 8, 8), np.int64))
    with pytest.raises(ImageError, match="images of type int64; expected uint8"):
        ArraySource(tmp_path / "b.npy")


def test_open_images_chooses_by_scheme_suffix_and_kind(tmp_path: Path) -> None:
    fill(tmp_path, ["f/0.png", "f/1.png"])
    (tmp_path / "l.txt").write_text("f/1.png\n")
    np.save(tmp_path / "a.npy", RAMP)
    make_tar(tmp_path / "t.tar", {"0.png": png(3)})
    for location, kind in {
        str(tmp_path): FolderSource,
        f"folder:{tmp_path}": FolderSource,
        f"{tmp_path}/l.txt": ListSource,
        f"list:{tmp_path}/l.txt": ListSource,
        f"{tmp_path}/a.npy": ArraySource,
        f"{tmp_path}/t.tar": WebDatasetSource,
    }.items():
        source = open_images(location)
        assert type(source) is kind
        again = open_images(source.location)
        assert again.fingerprint() == source.fingerprint()
        assert list(again.paths) == list(source.paths)
    assert value(open_images(tmp_path / "f/1.png"), 0) == 1
    assert value(open_images([tmp_path / "f/1.png", tmp_path / "f/0.png"]), 1) == 0
    for wrong in ("nowhere", "ftp:x", f"{tmp_path}/l.doc"):
        with pytest.raises(ImageError, match="no such file or folder"):
            open_images(wrong)


def test_string_tables_are_sequences_with_small_pickles() -> None:
    names = [f"folder/image-{i}.jpg" for i in range(1000)]
    table = StringTable(names)
    assert list(table) == names
    assert table[-1] == names[-1]
    assert table[3:5] == names[3:5]
    assert len(pickle.dumps(table)) < 1000 * 30
    with pytest.raises(IndexError):
        table[1000]
    assert table.take([len(names) - 1, 0]) == [names[-1], names[0]]
    assert list(StringTable([])) == [] == StringTable([]).take([])


def test_only_the_rows_cut_off_an_open_array_file_fail_to_load(
    tmp_path: Path,
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    file = tmp_path / "a.npy"
    np.save(file, pixels)
    source = ArraySource(file)
    np.testing.assert_array_equal(np.asarray(source.load(39)), pixels[39])
    os.truncate(file, file.stat().st_size - pixels[0].nbytes // 2)
    np.testing.assert_array_equal(np.asarray(source.load(38)), pixels[38])
    with pytest.raises(ImageError, match=r"a\.npy\[39\]: cannot be read"):
        source.load(39)


@pytest.mark.parametrize("name", ["pipe.png", "pipe.npy", "pipe.tar"])
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    (tmp_path / "list.txt").write_text(f"1.png\n{name}\n")
    fill(tmp_path, ["1.png"])
    source = ListSource(tmp_path / "list.txt")
    assert source.fingerprint()
    assert value(source, 0) == 0
    with pytest.raises(ImageError, match=rf"{name}: a pipe or a device"):
        source.load(1)
    with pytest.raises(ImageError, match=rf"{name}: .*a pipe or a device"):
        open_images(tmp_path / name).load(0)


def test_damaged_array_files_are_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.npy").touch()
    noise = np.random.default_rng(0).integers(0, 255, (9, 20, 20, 3), np.uint8)
    np.savez_compressed(tmp_path / "whole.npz", images=noise)
    shutil.copy(tmp_path / "whole.npz", tmp_path / "archive.npy")
    for name in ("empty.npy", "archive.npy"):
        with pytest.raises(ImageError, match=f"{name}: cannot be read"):
            open_images(tmp_path / name)
    data = bytearray((tmp_path / "whole.npz").read_bytes())
    data[3000] ^= 255
    (tmp_path / "flipped.npz").write_bytes(data)
    with pytest.raises(ImageError, match=r"flipped.npz\[2\]: cannot be read"):
        open_images(tmp_path / "flipped.npz").load(2)


def test_an_hdf5_data_set_without_a_shape_is_ignored(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = RAMP
        file["labels"] = h5py.Empty("f")
    source = open_images(tmp_path / "a.h5")
    assert len(source) == len(RAMP)
    assert source.labels is None


def test_a_negative_index_counts_from_the_end_of_an_array(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", RAMP)
    np.testing.assert_array_equal(np.asarray(open_images(tmp_path / "a.npy").load(-1)), RAMP[-1])


def test_a_hard_link_in_a_tar_is_an_image(tmp_path: Path) -> None:
    fill(tmp_path, ["a/0.png", "a/1.png"])
    os.link(tmp_path / "a/1.png", tmp_path / "a/2.png")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in ("0.png", "1.png", "2.png"):
            tar.add(tmp_path / "a" / name, name)
        assert tar.getmember("2.png").islnk()
    source = WebDatasetSource(tmp_path / "t.tar")
    assert list(source.paths) == ["t.tar/0.png", "t.tar/1.png", "t.tar/2.png"]
    assert [value(source, i) for i in range(3)] == [0, 1, 1]


def write_hdf5(path: Path, elsewhere: Path) -> None:
    """Images that lie in another file, by every way that HDF5 offers."""
    with h5py.File(elsewhere, "w") as other:
        other["images"] = RAMP
        offset = other["images"].id.get_offset()
    with h5py.File(path, "w") as file:
        raw = [(str(elsewhere), offset, RAMP.nbytes)]
        file.create_dataset("raw", RAMP.shape, "u1", external=raw)
        layout = h5py.VirtualLayout(RAMP.shape, "u1")
        layout[:] = h5py.VirtualSource(str(elsewhere), "images", shape=RAMP.shape)
        file.create_virtual_dataset("virtual", layout)
        file["link"] = h5py.ExternalLink(str(elsewhere), "images")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("raw", "external storage"), ("virtual", "a virtual data set"), ("link", "no array 'link'")],
)
def test_an_array_as_image_source_never_leaves_its_file(
    tmp_path: Path, name: str, reason: str
) -> None:
    write_hdf5(tmp_path / "a.h5", tmp_path / "other.h5")
    with pytest.raises(ImageError, match=r"external storage|virtual"):
        ArraySource(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["images"] = RAMP[:2]
        file["labels"] = h5py.SoftLink("/link")
    assert len(ArraySource(tmp_path / "a.h5")) == 2
    with pytest.raises(ImageError, match=reason):
        ArraySource(f"{tmp_path}/a.h5?key={name}")


def write_npy(path: Path, shape: tuple[int, ...], dtype: str = "|u1") -> Path:
    with path.open("wb") as file:
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(100))
    return path


def test_an_array_file_holds_what_it_claims(tmp_path: Path) -> None:
    for shape in ((10**18, 4, 4, 3), (3, 10**9, 10**9, 3)):
        npy = write_npy(tmp_path / "a.npy", shape)
        with pytest.raises(ImageError, match=r"a\.npy: cannot be read \(.*the file holds less"):
            ArraySource(npy)
        for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            with zipfile.ZipFile(tmp_path / "a.npz", "w", packing) as archive:
                archive.write(npy, "images.npy")
            with pytest.raises(ImageError, match=r"a\.npz: cannot be read \(.*holds less"):
                ArraySource(tmp_path / "a.npz")
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("images", shape, "u1", chunks=(1, 4, 4, 3))
        with pytest.raises(ImageError, match=r"a\.h5: cannot be read \(.*the file holds 0"):
            ArraySource(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((-1, 4, 4, 3), "|u1"), ((3, -4, -4, 3), "|u1"), ((3, 4, 4, 3), "|O")],
)
def test_an_npy_header_that_makes_no_sense_is_one_line(
    tmp_path: Path, shape: tuple[int, ...], dtype: str
) -> None:
    with pytest.raises(ImageError, match=r"a\.npy"):
        ArraySource(write_npy(tmp_path / "a.npy", shape, dtype))


@pytest.mark.parametrize("header", [b"(" * 5000, b"-" * 9000, b"{'descr': [" * 800, b"\xff" * 90])
def test_an_npy_header_that_is_no_literal_is_one_line(tmp_path: Path, header: bytes) -> None:
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    (tmp_path / "a.npy").write_bytes(start + header)
    with pytest.raises(ImageError, match=r"a\.npy: cannot be read") as caught:
        ArraySource(tmp_path / "a.npy")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
@pytest.mark.parametrize("kind", [">u2", ">f4", ">f8", ">f2"])
def test_big_endian_pixels_are_pixels(tmp_path: Path, suffix: str, kind: str) -> None:
    scale = 257 if kind == ">u2" else 1 / 255
    path, pixels = tmp_path / f"a{suffix}", (RAMP.astype(float) * scale).astype(kind)
    if suffix == ".npy":
        np.save(path, pixels)
    elif suffix == ".npz":
        np.savez(path, images=pixels)
    else:
        with h5py.File(path, "w") as file:
            file["images"] = pixels
    np.testing.assert_array_equal(np.asarray(ArraySource(path).load(1)), RAMP[1])


def test_braces_in_a_pattern_are_webdatasets_own(tmp_path: Path) -> None:
    for number in (8, 9, 10):
        make_tar(tmp_path / f"s-{number:03}.tar", {"x.png": png(number)})
    source = open_images(f"{tmp_path}/s-{{008..010}}.tar")
    assert [value(source, row) for row in range(3)] == [8, 9, 10]
    assert list(open_images(source.location).paths) == list(source.paths)
    source = open_images(f"{tmp_path}/{{s-008,s-01?}}.tar")
    assert [value(source, row) for row in range(2)] == [8, 10]
    with pytest.raises(ImageError, match=r"s-011\.tar: no such archive"):
        open_images(f"{tmp_path}/s-{{008..011}}.tar")
    with pytest.raises(ImageError, match="runs backwards"):
        open_images(f"{tmp_path}/s-{{9..8}}.tar")
    with pytest.raises(ImageError, match="more than 1000000 archives"):
        open_images(f"{tmp_path}/s-{{0..1000}}-{{0..1000}}.tar")


def test_of_a_member_that_a_tar_holds_twice_the_last_counts(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name, content in (("a.png", png(1)), ("b.png", png(2)), ("a.png", png(3))):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    source = open_images(tmp_path / "t.tar")
    assert list(source.paths) == ["t.tar/a.png", "t.tar/b.png"]
    assert [value(source, row) for row in (0, 1)] == [3, 2]


@pytest.mark.parametrize("size", [2**63, 2**63 - 1, 2**40, -512, -1024, -(2**63)])
@pytest.mark.parametrize("name", ["1.png", "1.txt"])
def test_a_member_that_claims_what_the_tar_does_not_hold_is_refused(
    tmp_path: Path, size: int, name: str
) -> None:
    whole = make_tar(tmp_path / "t.tar", {"0.png": png(0), name: png(1), "2.png": png(2)})
    with tarfile.open(whole) as archive:
        member = archive.getmember(name)
    info = tarfile.TarInfo(name)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (size % (1 << 95) | (1 << 95) if size >= 0 else size % (1 << 96)).to_bytes(12)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    data = bytearray(whole.read_bytes())
    data[member.offset : member.offset + 512] = block
    whole.write_bytes(data)
    with pytest.raises(ImageError, match=r"t\.tar: ") as caught:
        open_images(whole)
    assert "\n" not in str(caught.value)


def test_a_label_in_a_tar_is_short(tmp_path: Path) -> None:
    make_tar(tmp_path / "t.tar", {"0.png": png(0), "0.cls": b"x" * (1 << 17)})
    with pytest.raises(ImageError, match=r"the label 0\.cls is longer than 65536 bytes"):
        open_images(tmp_path / "t.tar")


def test_a_compressed_tar_by_its_suffix_says_that_it_is_compressed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(ImageError, match=r"t\.tar\.gz: a compressed archive.*unpack it"):
        open_images(tmp_path / "t.tar.gz")


def test_pictures_that_pillow_cannot_read_are_counted_and_named(tmp_path: Path) -> None:
    fill(tmp_path, ["a/1.png"])
    for name in ("a/x.heic", "b/y.HEIC", "z.nef"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    told = r"3 pictures passed over.*2 \.heic, 1 \.nef.*pip install pillow-heif; convert \.nef"
    with pytest.warns(UserWarning, match=told):
        assert list(FolderSource(tmp_path).paths) == ["a/1.png"]
    (tmp_path / "a/1.png").unlink()
    with pytest.raises(ImageError, match=r"no images in this folder .*pillow-heif"):
        FolderSource(tmp_path)
    with pytest.raises(ImageError, match=r"x\.heic: .*pip install pillow-heif"):
        open_images(tmp_path / "a/x.heic")
    make_tar(tmp_path / "t.tar", {"0.png": png(0), "1.jxl": b"x"})
    with pytest.warns(UserWarning, match=r"1 picture passed over.*pillow-jxl-plugin"):
        assert len(open_images(tmp_path / "t.tar")) == 1


def test_a_decoder_that_is_installed_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "from PIL import Image, PngImagePlugin\n"
    module += "def register_heif_opener():\n    Image.register_extension('PNG', '.heic')\n"
    (tmp_path / "pillow_heif.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    formats._registered.cache_clear()
    fill(tmp_path, ["d/0.heic"])
    assert value(open_images(tmp_path / "d"), 0) == 0
    formats._registered.cache_clear()
    sys.modules.pop("pillow_heif")
