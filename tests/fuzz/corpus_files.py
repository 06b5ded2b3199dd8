"""The inputs that fuzzing starts from and has found worth keeping."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from tests.fuzz import targets

CORPUS = Path(__file__).with_name("corpus")
FOUND = Path(__file__).with_name("found")

_CONDITIONS = (
    "label == 'dog' and 300 < width <= 640", "id in [1, 2]", "not readable", "'a' in name",
    "-1 < id", "label == None or width != 3.5e2",
)  # fmt: skip
_OBJECTIVES = (
    "top", "class:281", "class:tiger cat", "act2[3]", "act2[3,1,1]", "act2[1,centre]", "act2",
    "0.5*act2[1] - top", 'class:"a - b"', "out[1][3]", "class:3|7", "-act2[2] + 2*class:1",
)  # fmt: skip


def _images() -> list[bytes]:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    found = []
    for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        found.append(buffer.getvalue())
    return found


def seeds(name: str) -> list[bytes]:
    """Return a few sound inputs of a reader."""
    if name == "manifest":
        return [(targets.store() / "manifest.json").read_bytes()]
    if name == "result":
        return [(targets.result() / "result.json").read_bytes()]
    if name == "image":
        return _images()
    return [text.encode() for text in (_CONDITIONS if name == "condition" else _OBJECTIVES)]


def write_seeds(name: str) -> None:
    """Add the sound inputs to the corpus."""
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds(name)):
        (folder / f"seed-{number}").write_bytes(data)


def kept(name: str) -> list[bytes]:
    """Return the inputs of the corpus that are committed."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
