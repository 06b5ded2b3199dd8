"""scikit-learn's 1,797 digits, 8×8 px, as files of images with labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

TRAINED = 1400
"""Number of digits to train on; the other 397 are held out."""


def write_digits(folder: Path, *, trained: int = TRAINED, held_out: int = 397) -> tuple[Path, Path]:
    """Write the digits to train on and those held out; returns both files.

    The digits are in an order of a fixed seed, because in scikit-learn's order the last ones are
    those of other writers.

    Args:
        folder: where to write.
        trained: number of digits to train on, of the first 1,400.
        held_out: number of digits that are held out, of the last 397.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images / 16 * 255).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(pixels))
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "trained.npz", folder / "held-out.npz"
    parts = order[:TRAINED][:trained], order[TRAINED:][:held_out]
    for file, part in zip(files, parts, strict=True):
        np.savez(file, images=pixels[part], labels=digits.target[part])
    return files
