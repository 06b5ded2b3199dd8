"""AutoAttack leaves as many digits robust as pyautoattack does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests.environments import run

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(f"{sys.prefix}-peers") / "env/bin/python"
NETWORKS = [
    pytest.param("standard", marks=pytest.mark.slow),
    pytest.param("pgd", marks=pytest.mark.slow),
    *(pytest.param(name, marks=pytest.mark.soak) for name in ("fast", "trades", "ibp")),
]
"""Each takes a minute, so that three wait for the soak."""


@pytest.mark.skipif(not PYTHON.exists(), reason="`make slow` makes the environment of the peers")
@pytest.mark.parametrize("network", NETWORKS)
def test_autoattack_leaves_as_many_digits_robust_as_pyautoattack(network: str) -> None:
    norms = ["linf", "l2"] if network == "pgd" else ["linf"]
    told = run(PYTHON, "-m", "tests.peers.autoattack", network, *norms, cwd=ROOT)
    for norm, robust in json.loads(told.splitlines()[-1]).items():
        assert abs(robust["ours"] - robust["theirs"]) <= 1, (norm, robust)
        assert 10 < robust["theirs"] < 95
