"""An atlas has what the technique and `top` give for each unit, whatever stops it in between."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.atlas.conftest import write_pictures
from tests.processes import Running

from timmscope import (
    Atlas,
    HookedModel,
    ImageError,
    ParameterError,
    Store,
    StoreCorrupted,
    StoreError,
    StoreMismatch,
    TimmscopeError,
    load_result,
    make_atlas,
    mine,
    open_atlas,
    reporting,
)
from timmscope.atlas import units as making
from timmscope.drawing import to_array
from timmscope.testing.subjects import ProgressRecorder
from timmscope_representation.units.top_patches import TopPatches
from timmscope_synthesis import ActivationMaximization

QUICK = "activation-maximization steps=2"
DEAD = 3
"""A unit of `act1` whose gradient is zero at the start of `QUICK`."""


def made(store: Store, model: HookedModel, out: Path, layer: str = "bn1", **settings: Any) -> Atlas:
    given: dict[str, Any] = {"technique": QUICK, "k": 4, "model": model, "out": out} | settings
    return make_atlas(store, layer, **given)


def files_of(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_a_units_image_is_that_of_the_technique_alone(
    store: Store, tiny: HookedModel, tmp_path: Path
) -> None:
    several = made(store, tiny, tmp_path / "a", units="0,5-6", seed=3, k=0)
    alone = made(store, tiny, tmp_path / "b", units=5, seed=3, k=0)
    assert several.units.tolist() == [0, 5, 6]
    for place, unit in enumerate((0, 5, 6)):
        own = ActivationMaximization(steps=2)(tiny, f"bn1[{unit}]", seed=3)
        (image,) = several.images(unit)
        assert np.array_equal(np.asarray(image), to_array(own.images[0]))
        assert torch.equal(several.scores[place], own.final_scores)
        assert several.best_steps[place].tolist() == own.best_step.tolist()
    assert several.image_files(5)[0].read_bytes() == alone.image_files(5)[0].read_bytes()
    assert several.images(0)[0].tobytes() != several.images(5)[0].tobytes()
    named = several.provenance
    assert named.technique == "timmscope:activation-maximization"
    assert named.parameters["steps"] == 2
    assert (named.seed, named.weights_sha256) == (3, tiny.weights_sha256)


def test_patches_are_those_of_top(store: Store, tiny: HookedModel, tmp_path: Path) -> None:
    atlas = made(store, tiny, tmp_path / "a", units="1,4")
    own = TopPatches(units="1,4", k=4, view=None)(store, layer="bn1", model=tiny)
    assert torch.equal(atlas.image_ids, own.image_ids)
    assert torch.equal(atlas.values, own.values)
    assert torch.equal(atlas.positions, own.positions)
    assert torch.equal(atlas.boxes, own.boxes)
    assert atlas.names == own.names
    assert atlas.fields == ["spatial receptive field, 3x3 px"] * 2
    for place, unit in enumerate((1, 4)):
        for rank, patch in enumerate(atlas.patches(unit)):
            shown = np.asarray(patch, float).mean((0, 1))
            drawn = own.patches[place, rank].numpy().mean((1, 2))
            assert np.abs(shown - drawn).max() < 3  # of 255; the picture is lossy


def test_a_layer_of_vectors_shows_whole_images(
    store: Store, tiny: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    atlas = made(store, tiny, tmp_path / "a", "fc", units="2", k=3)
    best = store.layer("fc").maximum[:, 2].argsort()[::-1][:3]
    assert atlas.image_ids.tolist() == [best.tolist()]
    for image, patch in zip(best, atlas.patches(2), strict=True):
        seen = to_array(tiny.images(pictures / f"{image}.png")[0])
        small = np.asarray(patch.resize((32, 32), Image.Resampling.BOX), float)
        assert np.abs(small - seen.astype(float)).mean() < 3
    own = ActivationMaximization(steps=2)(tiny, "fc[2]").images
    assert float(atlas.scores) == pytest.approx(float(tiny(own)[0, 2]), rel=1e-5)


def test_several_images_of_a_unit_are_all_kept(
    store: Store, tiny: HookedModel, tmp_path: Path
) -> None:
    atlas = made(store, tiny, tmp_path / "a", units="0", technique=f"{QUICK} count=3")
    first, second, third = map(np.asarray, atlas.images(0))
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)
    assert atlas.scores.shape == (1, 3)
    assert atlas.summary()[0]["score"] == float(atlas.scores.max())


def test_a_dead_unit_is_recorded_and_stops_nothing(
    store: Store, tiny: HookedModel, tmp_path: Path
) -> None:
    atlas = made(store, tiny, tmp_path / "a", "act1", units=[DEAD, 0, 7])
    assert atlas.refused.keys() == {str(DEAD)}
    assert "is zero" in atlas.refused[str(DEAD)]
    assert atlas.images(DEAD) == []
    assert len(atlas.patches(DEAD)) == 4
    assert atlas.scores.isnan().flatten().tolist() == [False, True, False]
    assert [row["refused"] is None for row in atlas.summary()] == [True, False, True]
    assert open_atlas(store, "act1", tmp_path / "a").refused == atlas.refused


def test_an_atlas_cut_anywhere_ends_with_the_same_bytes(
    store: Store, tiny: HookedModel, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    made(store, tiny, whole, units="0-2", per_page=2)
    lines = (whole / "records.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    assert {"page-000.png", "page-001.png", "figure.png", "units.csv"} < files_of(whole).keys()
    for kept in (0, 2):
        cut = tmp_path / str(kept)
        shutil.copytree(whole / "units", cut / "units")
        shutil.copy(whole / "atlas.json", cut)
        (cut / "records.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:40])
        (cut / "units" / "00001.png").unlink()
        for half in ("page-000.png.tmp", "units/00002.png.tmp", "units/00001-patches.webp.tmp"):
            (cut / half).write_bytes(b"half")
        made(store, tiny, cut, units="0-2", per_page=2)
        assert files_of(cut) == files_of(whole)


@pytest.mark.slow
def test_a_killed_atlas_ends_with_the_same_bytes(store: Store, tmp_path: Path) -> None:
    def call(*outs: Path) -> str:
        return (
            "from timmscope import make_atlas\n"
            "from timmscope.testing import tiny_model\n"
            f"for out in {[str(out) for out in outs]}:\n"
            f"    make_atlas({str(store.path)!r}, 'bn1', units='0-3', per_page=2, k=2, out=out,\n"
            "               technique='activation-maximization steps=16', model=tiny_model())"
        )

    child = Running(call(tmp_path / "killed"))
    records = tmp_path / "killed" / "records.jsonl"
    limit = time.monotonic() + 120
    while child.alive and time.monotonic() < limit:
        if records.exists() and records.read_bytes().count(b"\n") >= 2:
            child.signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    assert child.done().returncode == -signal.SIGKILL
    finished = Running(call(tmp_path / "killed", tmp_path / "whole")).done()
    assert finished.returncode == 0, finished.stderr
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_an_interrupted_atlas_keeps_its_units_and_goes_on(
    store: Store, tiny: HookedModel, tmp_path: Path
) -> None:
    out = tmp_path / "a"
    # The steps of the first unit, its patches and itself, then the second unit.
    with pytest.raises(KeyboardInterrupt), reporting(ProgressRecorder(stop=6)):
        made(store, tiny, out, units="0-2", k=0)
    done = (out / "records.jsonl").read_bytes()
    assert 1 <= done.count(b"\n") < 3
    with pytest.raises(StoreError, match="not finished: finish it by `timmscope atlas"):
        open_atlas(store, "bn1", out)
    made(store, tiny, out, units="0-2", k=0)
    assert (out / "records.jsonl").read_bytes().startswith(done)
    assert open_atlas(store, "bn1", out).units.tolist() == [0, 1, 2]


def test_further_units_are_added_and_damaged_ones_made_again(
    store: Store, tiny: HookedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    own = making._unit

    def noted(job: making.Job, unit: int) -> dict[str, Any]:
        asked.append(unit)
        return own(job, unit)

    monkeypatch.setattr(making, "_unit", noted)
    out = tmp_path / "a"
    made(store, tiny, out, units="2", k=0)
    made(store, tiny, out, units="2", k=0)
    atlas = made(store, tiny, out, units="0,2", k=0)
    assert asked == [2, 0]
    assert atlas.units.tolist() == [0, 2]
    before = files_of(out)
    (out / "units" / "00002.png").write_bytes(b"damaged")
    with pytest.raises(StoreCorrupted, match="damaged or edited"):
        atlas.images(2)
    made(store, tiny, out, units="0", k=0)
    assert asked == [2, 0, 2]
    assert files_of(out) == before
    more = made(store, tiny, out, units="0", k=0, per_page=1)
    assert asked == [2, 0, 2]
    assert (more.pages, len(list(out.glob("page-*.png")))) == (2, 2)
    made(store, tiny, out, units="0", k=0)
    assert files_of(out) == before


def test_changed_settings_are_refused_with_the_difference(
    store: Store, tiny: HookedModel, tmp_path: Path
) -> None:
    made(store, tiny, tmp_path / "a", units="0", k=0)
    for change, difference in (
        ({"seed": 1}, "seed: 0 → 1"),
        ({"technique": "activation-maximization steps=3"}, "steps: 2 → 3"),
        ({"k": 2}, 'patches: null → {"k": 2'),
    ):
        with pytest.raises(StoreMismatch, match="holds an atlas with other settings") as error:
            made(store, tiny, tmp_path / "a", **{"units": "0", "k": 0, **change})  # type: ignore[arg-type]
        assert difference in str(error.value)


def test_the_atlas_of_another_or_a_changed_store_is_refused(
    store: Store, tiny: HookedModel, tmp_path: Path
) -> None:
    pictures = write_pictures(tmp_path / "pictures", 3)
    other = mine(tiny, pictures, tmp_path / "other.scope", layers=["bn1"], workers=0)
    with pytest.raises(StoreError, match=r"no atlas of bn1: make one by `timmscope atlas .*bn1`"):
        open_atlas(other, "bn1")
    atlas = made(other, tiny, None, units="0", k=0)  # type: ignore[arg-type]
    assert atlas.folder == tmp_path / "other.scope.atlas" / "bn1"
    renamed = other.path.rename(tmp_path / "renamed.scope")
    atlas.folder.parent.rename(tmp_path / "renamed.scope.atlas")
    folder = tmp_path / "renamed.scope.atlas" / "bn1"
    assert open_atlas(renamed, "bn1").units.tolist() == [0]
    with pytest.raises(StoreMismatch, match="was made from another store than"):
        open_atlas(store, "bn1", folder)
    with pytest.raises(StoreMismatch, match="was made from another store than"):
        made(store, tiny, folder, units="0", k=0)
    changed = dataclasses.replace(atlas, store=atlas.store | {"rows_sha256": "0" * 64})
    changed.placed_in(folder).save(folder)
    with pytest.raises(StoreMismatch, match=r"was made before rows of .* changed: delete it"):
        open_atlas(renamed, "bn1")


def test_without_the_images_an_atlas_has_no_patches_and_warns_once(
    tiny: HookedModel, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    pictures = write_pictures(tmp_path / "pictures", 3)
    store = mine(tiny, pictures, tmp_path / "s.scope", layers=["bn1"], workers=0)
    moved = pictures.rename(tmp_path / "moved")
    recwarn.clear()
    atlas = made(store, tiny, tmp_path / "a", units="0-1")
    (warning,) = recwarn.list
    assert "the atlas of bn1 has no patches, because the images of s.scope" in str(warning.message)
    assert not atlas.has_patches
    assert len(atlas.images(1)) == 1
    with pytest.raises(ImageError, match="nowhere"):
        made(store, tiny, tmp_path / "b", units="0", images=tmp_path / "nowhere")
    (moved / "1.png").unlink()
    recwarn.clear()
    some = made(store, tiny, tmp_path / "c", units="0-1", images=moved)
    (warning,) = recwarn.list
    assert str(warning.message).startswith("1 images of s.scope can no longer be read")
    assert some.lost == [1]
    rank = some.image_ids[0].tolist().index(1)
    assert np.asarray(some.patches(0)[rank]).std() < 4  # grey, in a lossy picture
    assert some.boxes[0, rank].tolist() == [-1] * 4


def test_links_out_of_the_folder_are_not_followed(
    store: Store, tiny: HookedModel, tmp_path: Path
) -> None:
    atlas = made(store, tiny, tmp_path / "a", units="0", k=0)
    file, outside = tmp_path / "a" / "units" / "00000.png", tmp_path / "secret.png"
    file.rename(outside)
    file.symlink_to(outside)
    for look in (lambda: atlas.images(0), lambda: atlas.image_files(0), lambda: atlas.page(0),
                 lambda: made(store, tiny, tmp_path / "a", units="0", k=0)):  # fmt: skip
        with pytest.raises(StoreCorrupted, match="leads out of the atlas by a link"):
            look()
    (tmp_path / "a" / "result.json").rename(tmp_path / "result.json")
    (tmp_path / "a" / "result.json").symlink_to(tmp_path / "result.json")
    with pytest.raises(StoreCorrupted, match="leads out of the atlas by a link"):
        open_atlas(store, "bn1", tmp_path / "a")


def test_a_forged_result_is_refused(store: Store, tiny: HookedModel, tmp_path: Path) -> None:
    atlas = made(store, tiny, tmp_path / "a", units="0-1", k=2)
    assert isinstance(load_result(tmp_path / "a"), Atlas)
    changes: list[dict[str, Any]] = [
        {"units": torch.tensor([1, 0])},
        {"scores": torch.zeros(2)},
        {"image_ids": torch.zeros((3, 2), dtype=torch.long)},
        {"names": [["a", "b", "c"], []]},
        {"per_page": 0},
    ]
    for number, change in enumerate(changes):
        values = {each.name: getattr(atlas, each.name) for each in dataclasses.fields(atlas)}
        forged = _Forged(**{**values, **change})
        forged.save(tmp_path / str(number))
        with pytest.raises(TimmscopeError, match="no result can be read from"):
            load_result(tmp_path / str(number), _Forged)


class _Forged(Atlas):
    """An atlas that is saved without a picture."""

    def _write(self, folder: Path) -> None:
        figure = Image.new("RGB", (1, 1))
        self.__dict__["figure"] = lambda: _Saver(figure)
        self.__dict__["pictures"] = dict
        self.__dict__["documents"] = dict
        self.__dict__["summary"] = list
        super()._write(folder)


class _Saver:
    def __init__(self, picture: Image.Image) -> None:
        self._picture = picture

    def savefig(self, path: Path, dpi: int) -> None:
        self._picture.save(path)


def test_wrong_arguments_are_refused(store: Store, tiny: HookedModel, tmp_path: Path) -> None:
    for wrong, words in (
        ({"k": 101}, "k is 101: expected an int from 0 to 100"),
        ({"k": 1.5}, "k is 1.5"),
        ({"per_page": 0}, "per_page is 0"),
        ({"technique": "pgd"}, "pgd is of the family attack: only syntheses"),
        ({"technique": 3}, "technique is 3: expected a synthesis"),
        ({"units": "0-8"}, "layer bn1 has units 0 to 7, there is no unit 8"),
        ({"units": []}, "it is empty"),
    ):
        with pytest.raises(ParameterError, match=words):
            made(store, tiny, tmp_path / "a", **wrong)
    assert not (tmp_path / "a").exists()
    atlas = made(store, tiny, tmp_path / "a", units="0", k=0)
    with pytest.raises(ParameterError, match="has no unit 5; it has 1 units from 0 to 0"):
        atlas.images(5)
    with pytest.raises(ParameterError, match="there is no page 1, expected 0 to 0"):
        atlas.page(1)
    with pytest.raises(TimmscopeError, match="in no folder"):
        dataclasses.replace(atlas).images(0)
