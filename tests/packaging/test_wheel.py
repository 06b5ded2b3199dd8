"""The wheel works alone: installed with its dependencies and nothing else, in a new environment.

A stranger's package is installed beside it there, and taken away again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "tests/third_party/timmscope-example"

SMOKE = """
import json, sys, torch, timmscope, timmscope_registry
assert "site-packages" in timmscope.__file__, timmscope.__file__
model = timmscope.load_model("random:resnet18?seed=0&img_size=64")
images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
from timmscope_attribution import GradCAM
cam = GradCAM(relu=False)(model, images, "class:3")
cam.save(sys.argv[1])
print(json.dumps({"peak": float(cam.maps.abs().max()), "extra": "skimage" in sys.modules}))
"""


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def built(folder: Path, out: Path) -> Path:
    flags = ("--quiet", "--no-deps", "--no-build-isolation", "-w", out)
    run(sys.executable, "-m", "pip", "wheel", *flags, folder, cwd=out)
    (found,) = out.glob("timmscope*.whl")
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return built(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A new environment with the wheel, what it depends on and nothing else."""
    root = tmp_path_factory.mktemp("new")
    venv.create(root / "env", with_pip=True)
    python = root / "env/bin/python"
    flags = ("--quiet", "--no-compile", "-c", ROOT / "constraints.txt")  # few modules are imported
    run(python, "-m", "pip", "install", *flags, wheel, cwd=root)
    return root / "env/bin"


def test_the_wheel_holds_every_package_its_types_and_data(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        text = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    families = ("attribution", "synthesis", "attack", "defence", "style", "representation")
    packages = ["timmscope", "timmscope_registry", *(f"timmscope_{name}" for name in families)]
    for package in packages:
        assert {f"{package}/__init__.py", f"{package}/py.typed"} <= names
    for package in set(packages) - {"timmscope_registry"}:
        assert f"{package}/__init__.pyi" in names
    assert any(name.startswith("timmscope/demo/") and ".html" in name for name in names)
    assert "timmscope/scaffold/templates/pyproject.toml.j2" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests", "docs", "core", "plugins")) for name in names)
    for family in families:
        assert f"{family} = timmscope_{family}.plugin" in text
    assert "timmscope = timmscope.cli:main" in text


def test_the_wheel_works_installed_alone(environment, tmp_path):
    python, command = environment / "python", environment / "timmscope"
    facts = json.loads(run(python, "-c", SMOKE, tmp_path / "out", cwd=tmp_path).splitlines()[-1])
    assert facts["peak"] > 0
    assert not facts["extra"]
    assert (tmp_path / "out" / "figure.png").exists()
    assert run(command, "--version", cwd=tmp_path).strip()
    listed = run(command, "plugins", "--json", cwd=tmp_path)
    for name in ("grad-cam", "pgd", "neural-style", "activation-maximization", "filters"):
        assert name in listed
    run(python, "-m", "pip", "check", cwd=tmp_path)


def test_a_strangers_package_is_found_run_and_taken_away_beside_it(environment, tmp_path):
    python, command = environment / "python", environment / "timmscope"
    run(python, "-m", "pip", "install", "--quiet", built(EXAMPLE, tmp_path), cwd=tmp_path)
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "grey.png")
    told = run(command, "run", "centre-bias", "colours:rgb", "grey.png", "--json", cwd=tmp_path)
    assert json.loads(told)["provenance"]["technique"] == "timmscope-example:centre-bias"
    assert json.loads(run(command, "doctor", "--json", cwd=tmp_path))["problems"] == []
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "timmscope-example", cwd=tmp_path)
    assert "timmscope-example" not in run(command, "plugins", cwd=tmp_path)
