"""Attacks equal those of torchattacks, which pins a version of requests that others cannot have."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests.environments import run

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(f"{sys.prefix}-peers") / "env/bin/python"


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason="`make slow` makes the environment of the peers")
def test_fgsm_and_pgd_are_torchattacks_on_digits() -> None:
    told = run(PYTHON, "-m", "tests.peers.attacks", cwd=ROOT)
    found = json.loads(told.splitlines()[-1])
    for name, figures in found.items():
        assert figures["difference"] <= 1e-6, name
        assert figures["same"] == 1, name
        assert figures["fooled"] > 0.2, name
