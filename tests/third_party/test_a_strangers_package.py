"""A distribution that is not ours: installed, found, run, blocked, broken, taken away.

The environment is new, but sees what is installed here: installing torch takes most of a minute.
`tests/packaging/test_wheel.py` installs, runs and takes away the same package in an environment
that has nothing but the wheel and what that depends on.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.environments import install, layered, pip, run, several, timmscope

EXAMPLE = Path(__file__).with_name("timmscope-example")
NAMES = {
    "centre-bias",
    "best-of-noise",
    "brightness",
    "borrowed-gradient",
    "tint",
    "shake",
    "rounding",
    "histogram-match",
    "class-distances",
    "mixup",
    "first-above",
    "colours",
    "gradients",
    "dictionary",
}

pytestmark = pytest.mark.xdist_group("third party")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the example installed as anybody would."""
    found = layered(tmp_path_factory.mktemp("stranger"))
    install(found, [EXAMPLE])
    return found


def ids(python: Path, *flags: str) -> set[str]:
    listed = json.loads(timmscope(python, *flags, "plugins", "--json"))
    prefix = "timmscope-example:"
    return {e["id"].removeprefix(prefix) for e in listed["entries"] if e["id"].startswith(prefix)}


def test_it_is_found_and_listed(python: Path) -> None:
    assert ids(python) == NAMES
    table = timmscope(python, "plugins")
    assert re.search(r"timmscope-example:centre-bias +attribution +0\.3\.0 +1\.1 +ok", table)
    assert "no problems" in timmscope(python, "doctor")


@pytest.mark.slow
def test_it_keeps_every_promise(python: Path) -> None:
    told = run(
        python, "-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLE / "tests", cwd=EXAMPLE
    )
    assert " passed" in told


def test_each_contribution_works_on_the_command_line(python: Path, tmp_path: Path) -> None:
    picture = tmp_path / "cat.png"
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[..., 1] = np.linspace(60, 200, 30).astype(np.uint8)
    Image.fromarray(pixels).save(picture)

    outcomes = several(
        python,
        ("run", "centre-bias", "--help"),
        ("run", "centre-bias", "colours:rgb", picture, "--json"),
        ("mine", "colours:rgb", "gradients:24", "-o", "g.scope", "--layers", "channels",
         "--collector", "first-above"),
        ("run", "class-distances", "g.scope", "--json"),
        ("index", "build", "g.scope", "channels", "--backend", "dictionary"),
        ("search", "g.scope", "--row", "0", "--json", "-k", "3"),
        cwd=tmp_path,
    )  # fmt: skip
    assert [status for status, _ in outcomes] == [0] * 6, outcomes
    help_text, explained, _, distances, _, found = (text for _, text in outcomes)
    assert "Its standard deviation, as a share of the image's sides. [above 0]" in " ".join(
        help_text.replace("│", " ").split()
    )
    told = json.loads(explained)
    assert told["provenance"]["technique"] == "timmscope-example:centre-bias"
    assert told["summary"][0]["objective"] == "green"
    assert [{row["label"], row["other"]} for row in json.loads(distances)["summary"]]
    assert "gradient-00003" in json.dumps(json.loads(found))


def test_blocked_it_is_not_even_imported(python: Path) -> None:
    assert ids(python, "--block", "timmscope-example") == set()
    refused = timmscope(
        python, "--block", "timmscope-example", "run", "centre-bias", "colours:rgb", status=2
    )
    assert "unknown technique 'centre-bias'" in refused
    code = (
        "import sys; from timmscope_registry import Registry; "
        "Registry(block=['timmscope-example']).entries(); "
        "print('timmscope_example.plugin' in sys.modules)"
    )
    assert run(python, "-c", code).strip() == "False"


@pytest.mark.parametrize(
    ("breakage", "stage", "words"),
    [
        ("raise RuntimeError('no licence')", "import", "RuntimeError: no licence"),
        ("import a_package_that_is_missing", "import", "No module named 'a_package_that_is_miss"),
        ("import sys; sys.exit(3)", "import", "sys.exit(3)"),
    ],
)
def test_broken_it_takes_nothing_down_and_is_named_with_its_version(
    python: Path, breakage: str, stage: str, words: str
) -> None:
    (plugin,) = python.parents[1].glob("lib/python*/site-packages/timmscope_example/plugin.py")
    sound = plugin.read_text()
    try:
        plugin.write_text(f"{breakage}\n{sound}")
        assert ids(python) == set()
        explained = timmscope(python, "doctor", status=2)
        assert f"timmscope-example:example 0.3.0 ({stage})" in explained
        assert words in explained
        assert "plugin.py" in explained
        assert "line 1" in explained
        assert "grad-cam" in timmscope(python, "run")
    finally:
        plugin.write_text(sound)
    assert ids(python) == NAMES


@pytest.mark.parametrize(
    ("breakage", "status", "words"),
    [
        (
            "        raise ValueError('no such\\nluck')",
            1,
            "timmscope-example:example 0.3.0 failed in attribution.py, line 18: ValueError: no "
            "such luck; tell its authors",
        ),
        (
            "        return images",
            2,
            "'centre-bias' of timmscope-example:example 0.3.0 returned maps of shape "
            "(1, 3, 16, 16)",
        ),
        ("        raise SystemExit(0)", 1, "attribution.py, line 18: it calls sys.exit(0)"),
    ],
)
def test_a_method_that_fails_is_named_and_one_that_returns_nonsense_is_stopped(
    python: Path, tmp_path: Path, breakage: str, status: int, words: str
) -> None:
    (file,) = python.parents[1].glob("lib/python*/site-packages/timmscope_example/attribution.py")
    sound = file.read_text()
    head, quotes, rest = sound.rpartition('"""')
    try:
        file.write_text(f"{head}{quotes}\n{breakage}\n{rest}")
        Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
        told = timmscope(
            python, "run", "centre-bias", "colours:rgb", "red.png", cwd=tmp_path, status=status
        )
        assert words in " ".join(told.split())
        assert "Traceback" not in told
    finally:
        file.write_text(sound)


def test_a_schema_that_cannot_be_is_told_and_the_rest_works(python: Path, tmp_path: Path) -> None:
    (file,) = python.parents[1].glob("lib/python*/site-packages/timmscope_example/attribution.py")
    sound = file.read_text()
    try:
        file.write_text(sound.replace("width: float", "width: NoSuchType"))
        outcomes = several(python, ("run", "centre-bias", "--help"), ("doctor", "-v"), ("run",))
        assert [status for status, _ in outcomes] == [2, 2, 0]
        told, explained, listed = (" ".join(text.split()) for _, text in outcomes)
        assert "'centre-bias' of timmscope-example:example 0.3.0 cannot be loaded" in told
        assert "NoSuchType" in told
        assert "timmscope-example:example 0.3.0 (implementation)" in explained
        assert "brightness" in listed
    finally:
        file.write_text(sound)


def test_taken_away_it_is_gone(tmp_path: Path) -> None:
    own = layered(tmp_path)
    install(own, [EXAMPLE])
    assert ids(own) == NAMES
    pip(own, "uninstall", "--quiet", "--yes", "timmscope-example")
    assert ids(own) == set()
    assert "no problems" in timmscope(own, "doctor")
