"""No input of a stranger causes an untyped error; the soak searches for one by coverage."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fuzz.corpus_files import kept, seeds
from tests.fuzz.targets import TARGETS, run

_ADDED = (b"\0", b"[", b"]", b'"', b"-", b"999999999", b"\xff")


def damaged(data: bytes, source: random.Random) -> bytes:
    """Return the input with a few bytes changed, added or removed."""
    found = bytearray(data)
    for _ in range(source.randint(1, 4)):
        place = source.randrange(len(found) + 1)
        if source.random() < 0.3:
            del found[place : place + source.randint(1, 8)]
        elif source.random() < 0.5:
            found[place:place] = source.choice(
                [b"\0", b"[", b"]", b'"', b"-", b"999999999", b"\xff"]
            )
        elif place < len(found):
            found[place] ^= 1 << source.randrange(8)
    return bytes(found)


@pytest.mark.parametrize("name", TARGETS)
def test_kept_and_damaged_inputs_cause_no_untyped_error(name: str) -> None:
    source = random.Random(0)
    sound = seeds(name)
    for data in [*sound, *kept(name)]:
        run(name, data)
    for number in range(60):
        run(name, damaged(sound[number % len(sound)], source))


@pytest.mark.soak
@pytest.mark.parametrize("name", TARGETS)
def test_coverage_guided_fuzzing_finds_no_untyped_error(name: str) -> None:
    pytest.importorskip("atheris", reason="make soak installs it on Linux")
    command = [sys.executable, "-m", "tests.fuzz", name, os.environ.get("FUZZ_SECONDS", "120")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
