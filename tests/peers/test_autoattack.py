"""AutoAttack leaves as many digits robust as pyautoattack does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests.environments import run

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(f"{sys.prefix}-peers") / "env/bin/python"
CASES = [
    pytest.param("pgd", "linf", marks=pytest.mark.slow),
    pytest.param("pgd", "l2", marks=pytest.mark.soak),
    *(
        pytest.param(name, "linf", marks=pytest.mark.soak)
        for name in ("standard", "fast", "trades", "ibp")
    ),
]
"""Each takes a minute, so that all but one wait for the soak."""


@pytest.mark.skipif(not PYTHON.exists(), reason="`make slow` makes the environment of the peers")
@pytest.mark.parametrize(("network", "norm"), CASES)
def test_autoattack_leaves_as_many_digits_robust_as_pyautoattack(network: str, norm: str) -> None:
    told = run(PYTHON, "-m", "tests.peers.autoattack", network, norm, cwd=ROOT)
    robust = json.loads(told.splitlines()[-1])[norm]
    assert abs(robust["ours"] - robust["theirs"]) <= 1, robust
    assert 10 < robust["theirs"] < 95
