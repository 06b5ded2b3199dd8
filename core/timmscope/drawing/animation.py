"""Writes animations: WebP and GIF by Pillow, MP4 by ffmpeg, with a description in the metadata."""

from __future__ import annotations

import math
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from timmscope.drawing.pixels import to_array
from timmscope.durable import make_folder, sync
from timmscope_registry import ParameterError, TimmscopeError

FPS = 10.0
"""Frames per second, if nothing else is asked for."""
_SLOWEST, _FASTEST = 0.1, 50.0  # browsers show a GIF's frames for 20 ms at least
_GAP_PX = 4
_MOST_PX = 2048
_DESCRIPTION = 0x010E  # the EXIF tag ImageDescription
_FORMATS = (".webp", ".gif", ".mp4")


def write_animation(
    frames: Tensor, path: str | Path, *, fps: float = FPS, description: str = ""
) -> Path:
    """Write frames as an animation that repeats, in the format of the file's name.

    Several images make a grid in each frame. A frame of more than 2048 px is scaled down. A file
    of that name is replaced when the new one is complete. MP4 needs the program `ffmpeg`; it
    repeats the last row or column of frames with an odd number of them.

    Args:
        frames: `(F, B, C, H, W)` uint8, F frames of B images.
        path: a name that ends in `.webp`, `.gif` or `.mp4`. Missing folders are created.
        fps: frames per second, 0.1 to 50; a GIF's frames begin at whole hundredths of a second.
        description: text for the metadata: EXIF `ImageDescription` of WebP, comment of the others.

    Raises:
        ParameterError: the format is another one, ffmpeg is missing, or `fps` or the frames are
            wrong.
        TimmscopeError: the file cannot be written, or ffmpeg fails.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in _FORMATS:
        raise ParameterError(
            f"{path}: animations are written as {', '.join(_FORMATS)}; end the name in .webp",
            parameter="path",
        )
    if not _SLOWEST <= fps <= _FASTEST:
        raise ParameterError(
            f"fps is {fps}: expected {_SLOWEST} to {_FASTEST:g} frames per second", parameter="fps"
        )
    if str(frames.dtype) != "torch.uint8" or frames.ndim != 5 or 0 in frames.shape:
        raise ParameterError(
            f"frames are {str(frames.dtype).removeprefix('torch.')} of shape "
            f"{tuple(frames.shape)}: expected uint8 (F, B, C, H, W)",
            parameter="frames",
        )
    program = _ffmpeg(path) if kind == ".mp4" else ""
    pages = (_page(images) for images in frames)
    unfinished = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        make_folder(path.parent)
        try:
            if program:
                _write_mp4(program, pages, unfinished, fps, description, path)
            else:
                _write_by_pillow(pages, unfinished, kind, _durations(len(frames), fps), description)
            sync(unfinished)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        sync(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise TimmscopeError(f"cannot write the animation to {path}: {reason}") from error
    return path


def _page(images: Tensor) -> Image.Image:
    """Put images `(B, C, H, W)` into a grid, nearly a square, on white."""
    pictures = [to_array(image / 255) for image in images]
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    height, width = (size + _GAP_PX for size in pictures[0].shape[:2])
    page = np.full((rows * height - _GAP_PX, columns * width - _GAP_PX, 3), 255, np.uint8)
    for place, picture in enumerate(pictures):
        top, left = place // columns * height, place % columns * width
        page[top : top + len(picture), left : left + picture.shape[1]] = picture
    image = Image.fromarray(page)
    image.thumbnail((_MOST_PX, _MOST_PX))
    return image


def _durations(count: int, fps: float) -> list[int]:
    """Return each frame's duration in ms: whole hundredths of a second that do not drift."""
    starts = [round(100 * number / fps) for number in range(count + 1)]
    return [10 * (stop - start) for start, stop in pairwise(starts)]


def _write_by_pillow(
    pages: Iterator[Image.Image],
    path: Path,
    kind: str,
    durations: list[int],
    description: str,
) -> None:
    first = next(pages)
    if kind == ".gif":
        facts = {"comment": description.encode()} if description else {}
        first.save(
            path, "GIF", save_all=True, append_images=pages, duration=durations, loop=0, **facts
        )
        return
    exif = Image.Exif()
    if description:
        exif[_DESCRIPTION] = description
    first.save(
        path,
        "WEBP",
        save_all=True,
        append_images=pages,
        duration=durations,
        loop=0,
        quality=90,
        exif=exif,
    )


def _ffmpeg(path: Path) -> str:
    program = shutil.which("ffmpeg")
    if program is None:
        raise ParameterError(
            f"{path}: MP4 needs the program ffmpeg, which is not on the PATH; install it (as in "
            "`apt install ffmpeg` or `brew install ffmpeg`), or end the name in .webp or .gif",
            parameter="path",
        )
    return program


def _write_mp4(
    program: str,
    pages: Iterator[Image.Image],
    path: Path,
    fps: float,
    description: str,
    final: Path,
) -> None:
    """Pipe the frames to ffmpeg; `final` is the file's name in messages.

    Raises:
        TimmscopeError: ffmpeg fails.
    """
    first = _even(next(pages))
    height, width = first.shape[:2]
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps}"]
    written = ["-pix_fmt", "yuv420p", "-crf", "18", "-movflags", "+faststart", "-f", "mp4"]
    if description:
        written += ["-metadata", f"comment={description}"]
    command = [
        *(program, "-loglevel", "error", "-y", *source, "-i", "pipe:0", "-an"),
        *(*written, f"file:{path.absolute()}"),
    ]
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors
        ) as process:
            assert process.stdin is not None, "it is a pipe"
            with suppress(OSError), process.stdin as pipe:  # ffmpeg says below why it has stopped
                pipe.write(first.tobytes())
                for page in pages:
                    pipe.write(_even(page).tobytes())
        if process.returncode:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").split("\n")
            said = next((line.strip() for line in lines if line.strip()), "it says nothing")
            raise TimmscopeError(
                f"ffmpeg cannot write {final}: {said}; write .webp or .gif, or install a "
                "complete ffmpeg"
            )


def _even(page: Image.Image) -> np.ndarray:
    """Return `(H, W, 3)` with even sizes, which most players need."""
    pixels = np.asarray(page)
    return np.pad(pixels, ((0, len(pixels) % 2), (0, pixels.shape[1] % 2), (0, 0)), "edge")
