"""Image quilting copies pixels, cuts where it costs least, and continues regular textures."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from timmscope import HookedModel, ParameterError, StyleOutcome, StyleTechnique, load_result
from timmscope.cli import main
from timmscope_registry import ImageError, TechniqueError
from timmscope_style import ImageQuilting, NeuralStyle
from timmscope_style.minimum_cut import cut_error, minimum_cut, straight_error
from timmscope_style.quilt import Quilt, Windows, overlap_of, starts

DATA = Path(skimage.__file__).parent / "data"


def texture(name: str, side: int = 192) -> torch.Tensor:
    """The upper left part of a texture of scikit-image, `(1, 3, side, side)`."""
    picture = Image.open(DATA / f"{name}.png").convert("RGB").crop((0, 0, side, side))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255


def checkerboard(side: int, period: int) -> torch.Tensor:
    rows, columns = np.mgrid[:side, :side]
    cells = (rows // (period // 2) + columns // (period // 2)) % 2
    return torch.from_numpy(cells).float().expand(1, 3, -1, -1).clone()


def test_the_cut_is_the_least_of_all_paths() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        errors = rng.random((6, 4))
        steps = itertools.product((-1, 0, 1), repeat=5)
        paths = [np.cumsum([start, *step]) for start, step in itertools.product(range(4), steps)]
        inside = [path for path in paths if path.min() >= 0 and path.max() < 4]
        least = min(errors[np.arange(6), path].sum() for path in inside)
        cut = minimum_cut(errors)
        assert np.abs(np.diff(cut)).max() <= 1
        assert cut_error(errors, cut) == pytest.approx(least, rel=1e-12)
        assert cut_error(errors, cut) <= straight_error(errors)


def test_a_hand_made_overlap_is_cut_along_its_zeros() -> None:
    errors = np.array([[0.0, 9, 9], [9, 0, 9], [9, 9, 0], [9, 0, 9]])
    assert minimum_cut(errors).tolist() == [0, 1, 2, 1]
    assert straight_error(errors) == 18


def test_the_errors_of_all_windows_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(1)
    source, wanted, weights = rng.random((13, 17, 3)), rng.random((5, 5, 3)), rng.random((5, 5))
    windows = Windows(source, 5)
    found = windows.energies(weights) - 2 * windows.products(weights[..., None] * wanted)
    found += (weights[..., None] * wanted**2).sum()
    for row, column in itertools.product(range(9), range(13)):
        difference = source[row : row + 5, column : column + 5] - wanted
        expected = (weights[..., None] * difference**2).sum()
        assert found[row, column] == pytest.approx(expected, abs=1e-9)


def test_a_block_is_joined_along_both_cuts() -> None:
    quilt = Quilt.empty(10, 10, 1, 6)  # an overlap of one pixel, so that cuts are straight
    assert overlap_of(6) == 1
    assert list(starts(10, 6)) == [0, 5]
    for number, at in enumerate([(0, 0), (0, 5), (5, 0), (5, 5)]):
        source = np.full((6, 6, 1), float(number))
        seams = list(quilt.place(source, (0, 0), at))
        assert len(seams) == (at[0] > 0) + (at[1] > 0)
        assert all(cut <= straight for cut, straight in seams)
    pixels = quilt.pixels[..., 0]
    assert pixels[:5, :5].tolist() == [[0] * 5] * 5
    assert pixels[5, 5] == pixels[10, 10] == 3  # the cut's own pixels are the new block's
    assert quilt.origin[:, 7, 8].tolist() == [2, 3]


@pytest.mark.parametrize("seed", [0, 1])
def test_every_pixel_is_a_pixel_of_the_source(seed: int) -> None:
    source = texture("grass", 96)
    result = ImageQuilting(size=100, block_px=24)(styles=source, seed=seed)
    number, row, column = result.copied_from[0].long()
    assert result.images.shape == (1, 3, 100, 100)
    assert not number.any()
    assert torch.equal(result.images[0], source[0][:, row, column])
    again = ImageQuilting(size=100, block_px=24)(styles=source, seed=seed)
    assert torch.equal(result.images, again.images)
    other = ImageQuilting(size=100, block_px=24)(styles=source, seed=seed + 7)
    assert not torch.equal(result.images, other.images)


def test_a_regular_texture_is_continued_without_an_error() -> None:
    image = ImageQuilting(size=120, block_px=36)(styles=checkerboard(72, 12), seed=3).images[0, 0]
    for axis in (0, 1):
        assert torch.equal(image.narrow(axis, 12, 108), image.narrow(axis, 0, 108))
        assert torch.equal(image.narrow(axis, 6, 114), 1 - image.narrow(axis, 0, 114))


def test_a_texture_is_not_the_source_copied_whole() -> None:
    result = ImageQuilting(size=160, block_px=24)(styles=texture("grass", 128), seed=0)
    row, column = result.copied_from[0, 1:].long()
    offset = torch.stack([row, column]) - torch.stack(
        torch.meshgrid(torch.arange(160), torch.arange(160), indexing="ij")
    )
    pieces = torch.unique(offset.flatten(1), dim=1).shape[1]
    assert pieces > 20  # of 64 blocks


@pytest.mark.parametrize(("name", "bar"), [("brick", 0.7), ("grass", 0.7)])
def test_cuts_are_far_better_than_straight_seams(
    name: str, bar: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seams: list[tuple[float, float]] = []
    place = Quilt.place

    def watched(self: Quilt, *given):  # type: ignore[no-untyped-def]
        made = list(place(self, *given))
        seams.extend(made)
        return made

    monkeypatch.setattr(Quilt, "place", watched)
    ImageQuilting()(styles=texture(name))
    cuts, straight = np.array(seams).T
    assert (cuts <= straight).all()
    assert cuts.sum() <= bar * straight.sum()


def test_a_picture_made_of_a_texture_follows_the_pictures_light() -> None:
    ramp = torch.linspace(0, 1, 96).expand(1, 3, 96, 96)
    result = ImageQuilting(size=96, block_px=12, passes=2)(
        content=ramp, styles=texture("gravel", 96)
    )
    columns = result.images[0].mean((0, 1))
    wanted = torch.linspace(0, 1, 96)
    assert float(torch.corrcoef(torch.stack([columns, wanted]))[0, 1]) > 0.9
    row, column = result.copied_from[0, 1:].long()
    assert torch.equal(result.images[0], texture("gravel", 96)[0][:, row, column])


def test_the_result_is_drawn_and_saved_with_its_sources(tmp_path: Path) -> None:
    result = ImageQuilting(size=48, block_px=12)(styles=texture("brick", 48))
    again = load_result(result.save(tmp_path / "out"))
    assert torch.equal(again.copied_from, result.copied_from)
    assert result.summary() == [{"height_px": 48, "width_px": 48}]
    assert {path.name for path in (tmp_path / "out").glob("*.png")} >= {"figure.png"}
    assert "copied-from" in result.pictures()
    assert result.loss_curves() == {}


def test_the_command_has_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    style = str(DATA / "brick.png")
    command = ["run", "image-quilting", "--style", style, "--size", "64", "--block-px", "16"]
    assert main([*command, "-o", out]) == 0
    saved = json.loads((tmp_path / "out" / "result.json").read_text())
    assert saved["provenance"]["model"] is None
    assert main(["run", "image-quilting", "-o", out]) == 2
    assert "--style" in capsys.readouterr().err
    assert main(["run", "image-quilting", "--help"]) == 0
    assert "MODEL" not in capsys.readouterr().out


def test_wrong_calls_are_one_clear_line(linear_model: HookedModel) -> None:
    brick = texture("brick", 64)
    with pytest.raises(ParameterError, match="takes no model"):
        ImageQuilting()(linear_model, None, brick)
    with pytest.raises(ParameterError, match="needs at least one style image"):
        ImageQuilting()()
    with pytest.raises(ParameterError, match="takes one style image, not 2"):
        ImageQuilting()(styles=[brick, brick])
    with pytest.raises(ParameterError, match="64×64 px, less than a block of 80 px"):
        ImageQuilting(block_px=80)(styles=brick)
    with pytest.raises(ParameterError, match="neural-style needs a model"):
        NeuralStyle()(None, None, brick)
    with pytest.raises(ImageError, match=r"expected \[0, 1\]"):
        ImageQuilting()(styles=2 * brick)
    with pytest.raises(ImageError, match="cannot make an image of int"):
        ImageQuilting()(content=7, styles=brick)


class Copies(StyleTechnique):
    """Says where pixels come from, rightly or wrongly."""

    takes = frozenset({"styles"})

    def stylize(self, model, content, styles, weights):  # type: ignore[no-untyped-def]
        assert model is None
        return StyleOutcome(styles[0] + ADDED, copied_from=ORIGIN)


@pytest.mark.parametrize(
    ("added", "change", "words"),
    [
        (0.0, (0, 0, 9), "copied pixels from outside style image 1"),
        (0.0, (1, 0, 0), "copied pixels from a style image that is not there"),
        (0.1, (0, 0, 0), "returned pixels that differ from their source in style 1"),
    ],
)
def test_a_wrong_source_of_a_pixel_is_the_techniques_fault(
    added: float, change: tuple[int, int, int], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"))
    origin = torch.cat([torch.zeros(1, 4, 4, dtype=torch.long), places])[None]
    origin[0, :, 0, 0] += torch.tensor(change)
    monkeypatch.setattr(f"{__name__}.ADDED", added)
    monkeypatch.setattr(f"{__name__}.ORIGIN", origin)
    with pytest.raises(TechniqueError, match=f"Copies {words}"):
        Copies()(styles=torch.full((1, 3, 4, 4), 0.5))


ADDED, ORIGIN = 0.0, torch.zeros(1, 3, 4, 4, dtype=torch.long)
