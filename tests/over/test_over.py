"""`technique.over` keeps what a call gives, survives every stop, and refuses other folders."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from timmscope import (
    AttackTechnique,
    AttributionTechnique,
    CertificationOutcome,
    CertificationTechnique,
    DefenceTechnique,
    Goal,
    HookedModel,
    ImageError,
    ImageSetRun,
    ImageSource,
    Objective,
    ParameterError,
    StoreCorrupted,
    StoreError,
    StoreMismatch,
    StyleOutcome,
    StyleTechnique,
    TechniqueError,
    TimmscopeError,
    load_result,
    mine,
    noise_like,
    open_images,
    technique,
)
from timmscope.store.records import Journal
from timmscope.techniques.over import run as running
from timmscope.techniques.over.growing_array import GrowingArray
from timmscope.testing import tiny_images, tiny_model

COUNT = 11
BROKEN = 5
FILES = ("images.npy", "records.jsonl", "images.csv", "arrays.h5", "result.json", "figure.png")


class Noisy(AttackTechnique):
    """Adds noise of one draw per image."""

    strength: float = Field(0.02, ge=0)
    """Size of the noise."""

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        noise = noise_like(images, "uniform")
        self.note("first_draw", noise[:, 0, 0, 0])
        return (images + self.strength * (2 * noise - 1)).clamp(0, 1)


class Halved(DefenceTechnique):
    """Halves the values."""

    backward: ClassVar[Literal["exact", "identity", "none"]] = "exact"

    def transform(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        return images / 2


class Bright(AttributionTechnique):
    """Maps the red channel, and refuses dark images, whose map is zero."""

    def attribute(self, model: HookedModel, images: Tensor, objective: Objective) -> Tensor:
        return (images[:, 0] - 0.3).clamp_min(0)


class Radii(CertificationTechnique):
    """Certifies a radius that an image's first value says; abstains below 0.2."""

    norm = "l2"

    def certify(self, model: HookedModel, images: Tensor, labels: Tensor) -> CertificationOutcome:
        first = images[:, 0, 0, 0].double()
        return CertificationOutcome(
            predictions=torch.where(first < 0.2, torch.full_like(labels, -1), labels), radius=first
        )


class Mixed(StyleTechnique):
    """Mixes content and style, with a draw per image."""

    takes: ClassVar[frozenset[str]] = frozenset({"content", "styles"})

    def stylize(
        self, model: Any, content: Tensor | None, styles: list[Tensor], weights: list[float]
    ) -> StyleOutcome:
        assert content is not None
        own = styles[0].mean() * noise_like(content, "uniform")
        return StyleOutcome(images=content / 2 + own / 2)


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return tiny_model("cnn")


@pytest.fixture(autouse=True)
def _quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of the time of a run over a few tiny images; test_figure.py draws them."""
    monkeypatch.setattr(ImageSetRun, "figure", lambda _: Figure(figsize=(1, 1)))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eleven pictures in two folders; one cannot be read."""
    return pictures(tmp_path / "photos")


def pictures(folder: Path, count: int = COUNT) -> Path:
    pixels = (tiny_images(count) * 255).byte().permute(0, 2, 3, 1).numpy()
    for number, picture in enumerate(pixels):
        file = folder / ("cats" if number < count // 2 else "dogs") / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
        if number == BROKEN:
            file.write_bytes(b"no image")
    return folder


def run(model: HookedModel, images: Any, out: Path, **more: Any) -> ImageSetRun:
    return Noisy().over(model, images, out, **{"batch_size": 3, "workers": 0, **more})


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


# --- what a run keeps ----------------------------------------------------------------------------


def test_a_run_keeps_what_one_call_gives(model, photos, tmp_path):
    made = run(model, photos, tmp_path / "out", seed=5)
    source = open_images(photos)
    readable = [number for number in range(COUNT) if number != BROKEN]
    images = torch.stack([model.preprocess(source.load(number)) for number in readable])
    whole = torch.cat([images[:BROKEN], images[:1], images[BROKEN:]])  # a stand-in keeps numbers
    call = Noisy()(model, whole, seed=5, batch_size=3)
    kept = made.images()
    for number in readable:
        torch.testing.assert_close(
            torch.from_numpy(kept.pixels(number)), call.images[number], rtol=0, atol=1e-6
        )
    for name in ("success", "radius", "linf", "first_draw", "confidence_after"):
        wanted = [float(row[name]) for row in call.summary()]
        found = made.column(name)
        np.testing.assert_allclose(
            found[readable], np.array(wanted)[readable], rtol=1e-5, atol=1e-6, err_msg=name
        )
        assert found[BROKEN].isnan()
    assert made.count == COUNT
    assert made.made == COUNT - 1
    assert made.unreadable == [
        {
            "image": "dogs/05.png",
            "reason": "not an image that Pillow can read; replace or remove the file",
        }
    ]


@pytest.mark.parametrize("batch_size", [1, 32])
def test_another_split_gives_equal_decisions_and_near_values(model, photos, tmp_path, batch_size):
    first = run(model, photos, tmp_path / "first")
    other = run(model, photos, tmp_path / "other", batch_size=batch_size)
    assert torch.equal(first.column("success"), other.column("success")) or torch.equal(
        first.column("success").nan_to_num(), other.column("success").nan_to_num()
    )
    torch.testing.assert_close(first.values, other.values, rtol=1e-5, atol=1e-5, equal_nan=True)
    for number in range(COUNT):
        if number != BROKEN:
            np.testing.assert_allclose(
                first.images().pixels(number), other.images().pixels(number), atol=1e-5
            )


def test_worker_processes_change_no_byte(model, photos, tmp_path):
    run(model, photos, tmp_path / "a")
    run(model, photos, tmp_path / "b", workers=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_random_draws_are_those_of_pgd_in_one_call(model, photos, tmp_path):
    source = open_images(photos)
    images = torch.stack([model.preprocess(source.load(number)) for number in range(BROKEN)])
    pgd = technique("pgd")(steps=2, epsilon=0.03)
    call = pgd(model, images, seed=2, batch_size=2)
    (tmp_path / "few").mkdir()
    for file in sorted((photos / "cats").iterdir()):
        shutil.copy(file, tmp_path / "few")
    made = pgd.over(model, tmp_path / "few", tmp_path / "out", seed=2, batch_size=2, workers=0)
    for number in range(BROKEN):
        kept = torch.from_numpy(made.images().pixels(number))
        torch.testing.assert_close(kept, call.images[number], rtol=0, atol=1e-5)


def test_a_random_defence_draws_by_the_number_of_the_image(photos, tmp_path):
    defended = tiny_model("cnn").defended([technique("randomized-resize")()])
    runs = [
        Noisy().over(defended, photos, tmp_path / str(size), batch_size=size, workers=0)
        for size in (2, 5)
    ]
    torch.testing.assert_close(
        runs[0].column("confidence_after"),
        runs[1].column("confidence_after"),
        rtol=1e-5,
        atol=1e-6,
        equal_nan=True,
    )


def test_maps_are_kept_as_floats_and_a_refused_map_is_reported(model, photos, tmp_path):
    Image.new("RGB", (40, 40)).save(photos / "dogs" / "07.png")
    made = Bright().over(model, photos, tmp_path / "out", batch_size=4, workers=0)
    maps = made.maps()
    source = open_images(photos)
    wanted = (model.preprocess(source.load(2))[0] - 0.3).clamp_min(0)
    np.testing.assert_array_equal(maps[2], wanted.numpy())
    assert [each["image"] for each in made.refused] == ["dogs/07.png"]
    assert "zero everywhere" in made.refused[0]["reason"]
    with pytest.raises(ImageError, match=r"dogs/07.png: refused in the run"):
        maps[7]
    with pytest.raises(ImageError, match=r"its run has kept maps; name the images that it ran"):
        open_images(tmp_path / "out")


def test_certificates_keep_radius_and_abstention(model, photos, tmp_path):
    made = Radii().over(model, photos, tmp_path / "out", workers=0)
    source = open_images(photos)
    for number in range(COUNT):
        if number == BROKEN:
            continue
        first = float(model.preprocess(source.load(number))[0, 0, 0])
        assert made.column("abstained")[number] == (first < 0.2)
        radius = 0.0 if first < 0.2 else first
        assert float(made.column("radius_l2")[number]) == pytest.approx(radius)
    assert not (tmp_path / "out" / "images.npy").exists()


def test_a_defence_keeps_the_images_behind_it(model, photos, tmp_path):
    made = Halved().over(model, photos, tmp_path / "out", workers=0)
    wanted = model.preprocess(open_images(photos).load(3)) / 2
    np.testing.assert_array_equal(made.images().pixels(3), wanted.numpy())


def test_a_style_without_a_model_gives_every_image_the_size_of_the_first(photos, tmp_path):
    Image.new("RGB", (60, 40), (200, 10, 10)).save(photos / "dogs" / "07.png")
    style = tmp_path / "style.png"
    Image.new("RGB", (8, 8), (100, 100, 100)).save(style)
    made = Mixed().over(None, photos, tmp_path / "out", styles=[style], workers=0, seed=1)
    assert made.images().pixels(7).shape == (3, 32, 32)
    content = torch.from_numpy(np.array(open_images(photos).load(4))) / 255
    call = Mixed()(None, content.permute(2, 0, 1)[None], [style], seed=1 * 1)
    assert not np.array_equal(made.images().pixels(4), call.images[0].numpy())  # its own draw
    first = torch.from_numpy(np.array(open_images(photos).load(0))) / 255
    call = Mixed()(None, first.permute(2, 0, 1)[None], [style], seed=1)
    np.testing.assert_allclose(made.images().pixels(0), call.images[0].numpy(), atol=1e-6)


def test_labels_of_the_images_are_used_on_request(model, tmp_path):
    pixels = (tiny_images(6) * 255).byte().permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "set.npz", images=pixels, labels=np.arange(6))
    made = Radii().over(
        model, tmp_path / "set.npz", tmp_path / "out", use_labels=True, batch_size=4, workers=0
    )
    assert [row["label"] for row in made.rows()] == [str(number) for number in range(6)]
    names = [model.class_name(number) for number in range(6)]
    table = (tmp_path / "out" / "images.csv").read_text().splitlines()
    assert [line.split(",")[2] for line in table[1:]] == names
    again = Radii().over(
        model, tmp_path / "set.npz", tmp_path / "list", labels=[*range(6)], batch_size=4, workers=0
    )
    assert torch.equal(again.values, made.values)


# --- stops and resumed runs ----------------------------------------------------------------------


class Stop(BaseException):
    """What Ctrl-C raises."""


def stop_at(patch: pytest.MonkeyPatch, place: str, number: int) -> None:
    """Raise `Stop` before or after the n-th time that a run does something."""
    kind, when = place.split()
    owner, name = {
        "array": (GrowingArray, "write"),
        "record": (Journal, "add"),
        "chunk": (running, "_chunk"),
        "finish": (running, "_finished"),
        "table": (running, "_write_table"),
    }[kind]
    whole: Callable[..., Any] = getattr(owner, name)
    passed = 0

    def stopping(*args: Any, **named: Any) -> Any:
        nonlocal passed
        passed += 1
        if passed == number and when == "before":
            raise Stop
        result = whole(*args, **named)
        if passed == number:
            raise Stop
        return result

    patch.setattr(owner, name, stopping)


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("array after", 1),
        ("record after", 1),
        ("array after", 3),
        ("record before", 3),
        ("finish before", 1),
        ("table after", 1),
    ],
)
def test_a_stopped_run_resumes_with_the_same_bytes(
    model, photos, tmp_path, monkeypatch, place, number
):
    run(model, photos, tmp_path / "whole")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_at(patch, place, number)
        with pytest.raises(Stop):
            run(model, photos, out)
    calls = 0
    perturb = Noisy.perturb

    def counting(self: Noisy, *args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return perturb(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Noisy, "perturb", counting)
        run(model, photos, out)
    assert contents(out) == contents(tmp_path / "whole")
    done = number - 1 + (place == "record after") if place.split()[0] in ("array", "record") else 0
    if place.split()[0] in ("finish", "table"):
        done = 4
    assert calls <= 4 - done


def test_a_torn_line_of_the_journal_costs_one_chunk(model, photos, tmp_path):
    run(model, photos, tmp_path / "whole")
    out = shutil.copytree(tmp_path / "whole", tmp_path / "out")
    for name in ("result.json", "arrays.h5", "figure.png", "images.csv"):
        (out / name).unlink()
    lines = (out / "records.jsonl").read_bytes().splitlines(keepends=True)
    (out / "records.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:50])
    os.truncate(out / "images.npy", (out / "images.npy").stat().st_size * 6 // 10)
    run(model, photos, out)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_finished_run_returns_at_once(model, photos, tmp_path, monkeypatch):
    first = run(model, photos, tmp_path / "out")
    monkeypatch.setattr(Noisy, "perturb", lambda *_: pytest.fail("it ran again"))
    again = run(model, photos, tmp_path / "out")
    torch.testing.assert_close(again.values, first.values, rtol=0, atol=0, equal_nan=True)
    assert again.images().paths[1] == "cats/01.png"


def test_the_folder_of_another_run_is_refused(photos, tmp_path):
    model, out = tiny_model("cnn"), tmp_path / "out"
    run(model, photos, out)
    before = contents(out)
    fewer, other = (shutil.copytree(photos, tmp_path / name) for name in ("fewer", "other"))
    (fewer / "cats" / "00.png").unlink()
    Image.new("RGB", (32, 32), "white").save(other / "cats" / "00.png")
    for made, over, images, more, shown in (
        (Noisy(strength=0.01), model, photos, {}, r"strength: 0.02 → 0.01"),
        (Noisy(), model, photos, {"seed": 3}, "seed: 0 → 3"),
        (Noisy(), model, photos, {"batch_size": 2}, "batch_size: 3 → 2"),
        (Noisy(), model, photos, {"labels": 4}, "arguments.labels: null → 4"),
        (Noisy(), tiny_model("token"), photos, {}, r'model: "tiny:cnn" → "tiny:token"'),
        (Halved(), model, photos, {}, "technique: .*noisy.* → .*halved"),
        (Noisy(), changed(tiny_model("cnn")), photos, {}, "weights_sha256: "),
        (Noisy(), model, fewer, {}, "images.count: 11 → 10"),
        (Noisy(), model, other, {}, "images.fingerprint: "),
    ):
        with pytest.raises(StoreMismatch, match=f"(?i){shown}") as error:
            made.over(over, images, out, **{"batch_size": 3, "workers": 0, **more})
        assert "\n" not in str(error.value)
        assert error.value.differences
    assert contents(out) == before


def changed(model: HookedModel) -> HookedModel:
    with torch.no_grad():
        model.module.fc.bias += 1
    known = model.preprocessing
    return HookedModel(
        model.module, id=model.id, input_size=known.input_size, mean=known.mean, std=known.std
    )


def test_a_folder_with_other_files_is_refused(model, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(StoreError, match=r"not a run over images, and not empty"):
        run(model, photos, tmp_path / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot create this folder"):
        run(model, photos, tmp_path / "file")


@pytest.mark.parametrize("call", [2, 5, 12, 16])
def test_a_full_disk_loses_nothing(model, photos, tmp_path, monkeypatch, call):
    run(model, photos, tmp_path / "whole")
    out, calls, sync = tmp_path / "out", 0, os.fsync

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TimmscopeError, match=r"[Nn]o space left|disk is full") as error:
            run(model, photos, out)
    assert "\n" not in str(error.value)
    run(model, photos, out)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_disk_without_room_for_all_images_is_noticed_at_once(
    model, photos, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with pytest.raises(StoreError, match=r"11 images need 135 KB and the disk has 100 KB free"):
        run(model, photos, tmp_path / "out")


# --- what ends a run, and what does not ----------------------------------------------------------


def test_a_technique_that_refuses_everything_ends_at_the_first_chunk(model, tmp_path):
    for number in range(6):
        (tmp_path / "dark").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / "dark" / f"{number}.png")
    with pytest.raises(TechniqueError, match="zero everywhere"):
        Bright().over(model, tmp_path / "dark", tmp_path / "out", batch_size=2, workers=0)
    assert not (tmp_path / "out" / "records.jsonl").exists()


def test_images_of_which_none_can_be_read_are_an_error(model, tmp_path):
    (tmp_path / "bad").mkdir()
    for number in range(3):
        (tmp_path / "bad" / f"{number}.png").write_bytes(b"x")
    with pytest.raises(ImageError, match=r"nothing was made of the 3 images; the first reason is"):
        run(model, tmp_path / "bad", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labelz": 3}, r"takes no 'labelz'"),
        ({"labels": [1, 2]}, r"2 labels for 11 images: give one, or one for each"),
        ({"use_labels": True}, r"the images have 2 labels .*has 10 classes"),
        ({"use_labels": True, "labels": 1}, r"leave labels out"),
        ({"batch_size": 0}, r"batch_size is 0"),
        ({"workers": -1}, r"workers is -1"),
        ({"seed": 1.5}, r"seed is 1.5"),
    ],
)
def test_wrong_arguments_give_one_line(model, photos, tmp_path, arguments, message):
    with pytest.raises(ParameterError, match=message) as error:
        run(model, photos, tmp_path / "out", **arguments)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_texture_technique_is_refused(tmp_path):
    class Texture(StyleTechnique):
        """Makes textures only."""

        takes: ClassVar[frozenset[str]] = frozenset({"styles"})

        def stylize(self, model, content, styles, weights):
            return StyleOutcome(images=styles[0])

    with pytest.raises(ParameterError, match=r"takes no content image, so it cannot work through"):
        Texture().over(None, tmp_path, tmp_path / "out", styles=tiny_images(1))


def test_a_warning_with_other_numbers_is_shown_once(model, photos, tmp_path):
    class Warns(Halved):
        """Warns of each chunk."""

        def transform(self, images, generators):
            warnings.warn(f"{int(images.sum())} is much", stacklevel=1)
            return images

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Warns().over(model, photos, tmp_path / "out", batch_size=2, workers=0)
    assert len([each for each in caught if "is much" in str(each.message)]) == 1


# --- the output as an image set ------------------------------------------------------------------


class Threshold(nn.Module):
    """Two logits: the mean of an image in 8-bit steps above 100.7, and its negative."""

    num_classes = 2

    def forward(self, images: Tensor) -> Tensor:
        above = images.double().mean((1, 2, 3)) * 255 - 100.7
        return torch.stack([-above, above], 1)


class Nudge(AttackTechnique):
    """Adds 0.45 of an 8-bit step, which rounding takes away again."""

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        return images + 0.45 / 255


def threshold() -> HookedModel:
    size = (3, 8, 8)
    return HookedModel(
        Threshold(), id="threshold", input_size=size, mean=(0, 0, 0), std=(1, 1, 1), crop_pct=1
    )


def grey_images(folder: Path) -> Path:
    (folder / "cats").mkdir(parents=True)
    (folder / "dogs").mkdir()
    for number in range(4):
        picture = np.full((8, 8, 3), 100, np.uint8)
        picture[:4, :, :] += 1 if number % 2 else 0
        Image.fromarray(picture).save(folder / ("cats", "dogs")[number // 2] / f"{number}.png")
    return folder


def test_an_attack_that_rounding_would_undo_survives_reading_it_back(tmp_path):
    model = threshold()
    photos = grey_images(tmp_path / "grey")
    made = Nudge(epsilon=0.1).over(model, photos, tmp_path / "out", workers=0)
    # Images of 100 stay below the threshold; those with a mean of 100.5 are pushed above it.
    assert made.column("success").tolist() == [0, 1, 0, 1]
    assert made.column("success_8bit").tolist() == [0, 0, 0, 0]
    source = open_images(tmp_path / "out")
    floats = torch.stack([model.preprocessing.load(source, number)[0] for number in range(4)])
    assert model(floats).argmax(1).tolist() == [0, 1, 0, 1]
    rounded = torch.stack([model.preprocess(source.load(number)) for number in range(4)])
    assert model(rounded).argmax(1).tolist() == [0, 0, 0, 0]
    again = Radii().over(model, source, tmp_path / "again", workers=0)
    assert [row["model"] for row in again.rows()] == [model.class_name(i) for i in (0, 1, 0, 1)]


def test_the_output_is_mined_and_its_facts_are_columns_of_conditions(model, tmp_path):
    photos = grey_images(tmp_path / "grey")
    (photos / "dogs" / "4.png").write_bytes(b"no image")
    made = Nudge(epsilon=0.1).over(threshold(), photos, tmp_path / "out", workers=0)
    assert made.column("radius").tolist()[0] == np.inf
    store = mine(model, tmp_path / "out", tmp_path / "out.scope", workers=0)
    assert list(store.images.paths) == list(open_images(photos).paths)
    assert list(store.images.labels) == ["cats", "cats", "dogs", "dogs", "dogs"]
    assert [image for image, *_ in store.images.unreadable()] == [4]
    known = store.with_metadata(tmp_path / "out" / "images.csv").images
    for condition, wanted in (
        ("success == 1", [1, 3]),
        ("success == 0 and label == 'dogs'", [2]),
        ("radius > 1", [0, 2]),  # infinite where the attack found nothing
        ("radius < 0.002", [1, 3]),
        ("label_used == 'class 0'", [0, 1, 2, 3]),
    ):
        assert np.flatnonzero(known.where(condition)).tolist() == wanted, condition


def test_the_output_is_an_image_source_like_others(model, photos, tmp_path):
    run(model, photos, tmp_path / "out")
    source = open_images(tmp_path / "out")
    assert isinstance(source, ImageSource)
    again = open_images(source.location)
    assert again.fingerprint() == source.fingerprint()
    assert source.load(0).mode == "RGB"
    Noisy().over(model, source, tmp_path / "twice", workers=0)
    plain = open_images(tmp_path / "out" / "images.npy")
    assert plain.load(2).tobytes() == source.load(2).tobytes()
    with pytest.raises(ImageError):
        plain.load(BROKEN)


def test_an_unfinished_run_is_no_image_set(model, photos, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, "record after", 2)
        with pytest.raises(Stop):
            run(model, photos, tmp_path / "out")
    with pytest.raises(ImageError, match=r"its run has done 6 of 11 images; finish it first"):
        open_images(tmp_path / "out")


# --- files of strangers --------------------------------------------------------------------------


def test_flipped_bits_are_noticed(model, photos, tmp_path):
    run(model, photos, tmp_path / "out")
    whole = contents(tmp_path / "out")["images.npy"]
    generator = np.random.default_rng(0)
    for place in generator.integers(128, len(whole), 20).tolist():
        data = bytearray(whole)
        data[place] ^= 4
        (tmp_path / "out" / "images.npy").write_bytes(data)
        source = open_images(tmp_path / "out")
        row = (place - 128) // (3 * 32 * 32 * 4)
        if row != BROKEN:
            with pytest.raises(ImageError, match="differs from its checksum"):
                source.load(row)
    for name in ("records.jsonl", "over.json"):
        text = (tmp_path / "out" / name).read_bytes()
        (tmp_path / "out" / name).write_bytes(text.replace(b"11", b"12"))
        with pytest.raises(ImageError, match="differs from its digest"):
            open_images(tmp_path / "out")
        (tmp_path / "out" / name).write_bytes(text)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:5000]),
        lambda file: np.save(file, np.zeros((11, 3, 32, 32))),
        lambda file: np.save(file, np.array([{}], dtype=object), allow_pickle=True),
        lambda file: (file.unlink(), os.mkfifo(file)),
        lambda file: file.unlink(),
    ],
    ids=["empty", "short", "other type", "objects", "pipe", "missing"],
)
def test_damaged_arrays_give_one_line(model, photos, tmp_path, break_it):
    run(model, photos, tmp_path / "out")
    break_it(tmp_path / "out" / "images.npy")
    with pytest.raises(ImageError) as error:
        open_images(tmp_path / "out")
    assert "\n" not in str(error.value)


def test_a_resumed_run_whose_images_are_gone_says_so(model, photos, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, "record after", 2)
        with pytest.raises(Stop):
            run(model, photos, tmp_path / "out")
    (tmp_path / "out" / "images.npy").unlink()
    with pytest.raises(StoreCorrupted, match=r"holds less than 6 of 11 images"):
        run(model, photos, tmp_path / "out")


# --- the result ----------------------------------------------------------------------------------


def test_the_result_is_loaded_with_its_folder(model, photos, tmp_path):
    made = run(model, photos, tmp_path / "out")
    shutil.move(tmp_path / "out", tmp_path / "moved")
    again = load_result(tmp_path / "moved", ImageSetRun)
    torch.testing.assert_close(again.values, made.values, rtol=0, atol=0, equal_nan=True)
    assert len(again.images()) == COUNT
    assert next(again.rows())["name"] == "cats/00.png"
    assert again.summary()[0]["fact"] == again.columns[0]
    with pytest.raises(ParameterError, match=r"no fact 'succes' in numbers: did you mean"):
        again.column("succes")
    assert re.match(r"ImageSetRun\(", repr(again))


@pytest.mark.parametrize(
    ("few", "many"), [(40, 240), pytest.param(200, 2000, marks=pytest.mark.slow)]
)
def test_memory_does_not_grow_with_the_number_of_images(model, tmp_path, few, many):
    peaks = []
    for count in (20, few, many):
        pixels = np.random.default_rng(0).integers(0, 255, (count, 32, 32, 3), dtype=np.uint8)
        np.save(tmp_path / f"{count}.npy", pixels)
        del pixels
        tracemalloc.start()
        Halved().over(model, tmp_path / f"{count}.npy", tmp_path / f"out{count}", workers=0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    image = 3 * 32 * 32 * 4
    assert peaks[2] - peaks[1] < (many - few) / 18 * image, peaks
