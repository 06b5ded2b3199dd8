"""Animations: frames, durations and metadata read back from the files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from timmscope import ParameterError, SynthesisOutcome, SynthesisTechnique, TimmscopeError
from timmscope.drawing import write_animation
from timmscope.testing import tiny_model

posix = pytest.mark.skipif(os.name == "nt", reason="the stand-in for ffmpeg is a shell script")


def frames(count: int = 4, images: int = 1, height: int = 24, width: int = 32) -> torch.Tensor:
    """Return gradients that get brighter and whose blue says which image it is."""
    rows = torch.linspace(0, 120, height)[:, None].expand(height, width)
    columns = torch.linspace(0, 120, width).expand(height, width)
    shown = torch.zeros(count, images, 3, height, width)
    for frame in range(count):
        for image in range(images):
            shown[frame, image] = torch.stack([rows, columns, torch.full_like(rows, 60.0 * image)])
            shown[frame, image, :2] += 30 * frame
    return shown.round().to(torch.uint8)


def read(path: Path) -> tuple[np.ndarray, list[int]]:
    """Return the frames `(F, H, W, 3)` of a file and their durations in ms."""
    pixels, durations = [], []
    with Image.open(path) as file:
        for number in range(file.n_frames):
            file.seek(number)
            pixels.append(np.asarray(file.convert("RGB"), np.int64))
            durations.append(int(file.info["duration"]))
        assert file.info["loop"] == 0
    return np.stack(pixels), durations


@pytest.mark.parametrize(("name", "error"), [("a.webp", 2.5), ("a.GIF", 4.0)])
def test_frames_and_durations_read_back(tmp_path, name, error):
    shown = frames(5)
    path = write_animation(shown, tmp_path / "new" / name, fps=12)
    pixels, durations = read(path)
    expected = shown[:, 0].permute(0, 2, 3, 1).numpy().astype(np.int64)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).mean((1, 2, 3)).max() < error
    assert durations == [80, 90, 80, 80, 90]  # begin at 0, 8.33, 16.67 … hundredths of a second
    assert [each.name for each in path.parent.iterdir()] == [name]


def test_several_images_are_a_grid_on_white(tmp_path):
    pixels, _ = read(write_animation(frames(2, images=3), tmp_path / "a.webp"))
    assert pixels.shape == (2, 2 * 24 + 4, 2 * 32 + 4, 3)
    corners = {0: (0, 0), 1: (0, 36), 2: (28, 0)}
    for image, (top, left) in corners.items():
        middle = pixels[0, top + 8 : top + 16, left + 8 : left + 24, 2]
        assert abs(middle.mean() - 60 * image) < 6
    assert pixels[:, 36:, 44:].min() > 240  # there is no fourth image


def test_large_frames_are_scaled_down(tmp_path):
    shown = torch.zeros(2, 1, 1, 30, 4100, dtype=torch.uint8)
    shown[1] = 200
    pixels, _ = read(write_animation(shown, tmp_path / "a.webp"))
    assert pixels.shape == (2, 15, 2048, 3)


class Brightens(SynthesisTechnique):
    """Two images that get brighter, with a frame of each step."""

    kept: int = 3

    def synthesize(self, model, objective, init):
        shown = torch.linspace(0.2, 0.6, max(self.kept, 1))[:, None, None, None, None]
        shown = shown.expand(-1, 2, 3, 32, 32)
        return SynthesisOutcome(
            images=shown[-1],
            scores=torch.zeros(3, 2),
            best_step=torch.zeros(2, dtype=torch.long),
            frames=shown if self.kept else None,
        )


def test_a_saved_result_has_an_animation_with_its_provenance(tmp_path):
    made = Brightens()(tiny_model(), "class:1", seed=5)
    folder = made.save(tmp_path / "made")
    pixels, durations = read(folder / "animation.webp")
    levels = pixels[:, 4:28, 4:28].mean((1, 2, 3))
    assert levels.tolist() == pytest.approx([51, 102, 153], abs=1.5)
    assert durations == [100, 100, 100]
    record = json.loads((folder / "result.json").read_text())
    assert "animation.webp" in record["files"]
    with Image.open(folder / "animation.webp") as file:
        assert json.loads(file.getexif()[0x010E]) == record["provenance"]
    with Image.open(made.save_animation(tmp_path / "a.gif", fps=50)) as file:
        assert json.loads(file.info["comment"]) == record["provenance"]
        assert file.info["duration"] == 20


def test_a_result_without_frames_has_no_animation(tmp_path):
    made = Brightens(kept=0)(tiny_model(), "class:1")
    assert not (made.save(tmp_path / "made") / "animation.webp").exists()
    with pytest.raises(ParameterError, match=r"this Synthesis of .* has no frames: run a"):
        made.save_animation(tmp_path / "a.webp")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("a.avi", {}, r"a.avi: animations are written as .webp, .gif, .mp4; end the name"),
        ("a.webp", {"fps": 51}, r"fps is 51: expected 0.1 to 50"),
        ("a.webp", {"fps": float("nan")}, r"fps is nan: expected 0.1 to 50"),
        ("a.webp", {"frames": torch.zeros(2, 1, 3, 4, 4)}, r"frames are float32 of shape \(2, 1"),
        ("a.gif", {"frames": torch.zeros(3, 4, 4, dtype=torch.uint8)}, r"uint8 \(F, B, C, H, W\)"),
    ],
)
def test_a_wrong_animation_is_refused(tmp_path, name, changes, message):
    with pytest.raises(ParameterError, match=message):
        write_animation(**{"frames": frames(), "path": tmp_path / name, **changes})
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "a.webp").mkdir()
    with pytest.raises(TimmscopeError, match="cannot write the animation to"):
        write_animation(frames(), tmp_path / "a.webp")
    assert [each.name for each in tmp_path.iterdir()] == ["a.webp"]


def test_mp4_without_ffmpeg_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ParameterError, match=r"MP4 needs the program ffmpeg.*apt install ffmpeg"):
        write_animation(frames(), tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_mp4_reads_back(tmp_path):
    shown = frames(5, height=95, width=129)  # odd sizes are padded
    path = write_animation(shown, tmp_path / "a.mp4", fps=5, description='{"seed": "= ; # \\n"}')
    run = ["ffmpeg", "-loglevel", "error", "-i", str(path)]
    raw = subprocess.run(
        [*run, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], check=True, capture_output=True
    ).stdout
    pixels = np.frombuffer(raw, np.uint8).reshape(5, 96, 130, 3)[:, :95, :129].astype(np.int64)
    expected = shown[:, 0].permute(0, 2, 3, 1).numpy().astype(np.int64)
    assert np.abs(pixels - expected).mean((1, 2, 3)).max() < 4
    assert b'{"seed": "= ; # \\n"}' in path.read_bytes()
    shown = subprocess.run(["ffmpeg", "-i", str(path)], check=False, capture_output=True, text=True)
    assert "Duration: 00:00:01.00" in shown.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["a.mp4"]


@posix
def test_ffmpeg_gets_the_frames_and_its_failure_is_one_line(tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    program.write_text(
        '#!/bin/sh\ncd "$(dirname "$0")"\nprintf "%s\\n" "$@" >arguments\ncat >frames.raw\n'
        'for last; do :; done\necho made >"${last#file:}"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    shown = frames(3)
    path = write_animation(shown, tmp_path / "out" / "a.mp4", fps=8, description="made by hand")
    assert path.read_text() == "made\n"
    raw = np.frombuffer((tmp_path / "frames.raw").read_bytes(), np.uint8)
    assert (raw.reshape(3, 24, 32, 3) == shown[:, 0].permute(0, 2, 3, 1).numpy()).all()
    arguments = (tmp_path / "arguments").read_text().split("\n")
    assert arguments[arguments.index("-s") + 1] == "32x24"
    assert arguments[arguments.index("-r") + 1] == "8"
    assert "comment=made by hand" in arguments
    program.write_text("#!/bin/sh\necho 'Unknown encoder' >&2\necho more >&2\nexit 1\n")
    with pytest.raises(TimmscopeError, match=r"cannot write .*a.mp4: Unknown encoder; write"):
        write_animation(frames(3, height=600, width=600), path)
    assert path.read_text() == "made\n"  # the earlier file is still there
    assert [each.name for each in path.parent.iterdir()] == ["a.mp4"]
