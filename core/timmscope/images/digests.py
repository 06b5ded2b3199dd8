"""The SHA-256 of an image as it was given: of a file's bytes, or of shape and values."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from timmscope.safe_files import open_regular


def image_sha256(source: Any) -> str:
    """Return the SHA-256 of an image.

    Args:
        source: a path, picture, array or tensor.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no regular file.
    """
    if isinstance(source, str | Path):
        with open_regular(source) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if hasattr(source, "detach"):
        source = source.detach().cpu().numpy()
    return values_sha256(np.asarray(source))


def values_sha256(values: npt.NDArray[Any]) -> str:
    """Return the SHA-256 of an array's type, shape and values."""
    digest = hashlib.sha256(f"{values.dtype.str}{values.shape}".encode())
    digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
