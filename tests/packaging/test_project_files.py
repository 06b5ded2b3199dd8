"""What the project's files say to GitHub, to PyPI and to those who cite it agrees."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import timmscope

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    settings: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return settings


def load(path: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def test_the_tests_run_on_every_python_that_is_declared(project: dict[str, Any]) -> None:
    start = "Programming Language :: Python :: 3."
    declared = [
        f"3.{c.removeprefix(start)}" for c in project["project"]["classifiers"] if start in c
    ]
    matrix = load(ROOT / ".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == declared
    assert project["project"]["requires-python"] == f">={declared[0]}"


def test_the_tests_run_there_as_make_runs_them() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert '-m "not slow and not soak"' in makefile
    assert "-m slow" in makefile
    steps = load(ROOT / ".github/workflows/ci.yml")["jobs"]["test"]["steps"]
    commands = " ".join(step.get("run", "") for step in steps)
    assert '--dist loadgroup -m "not soak"' in commands
    assert "-c constraints.txt -e '.[demo,embed]' --group test" in commands
    assert "-c constraints.txt -e '.[demo,embed]' --group test" in makefile


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_only_and_uses_pinned_actions(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    used = re.findall(r"uses: (\S+)", path.read_text(encoding="utf-8"))
    assert used
    for action in used:
        assert re.search(r"@([0-9a-f]{40}|sha256:[0-9a-f]{64})$", action), action
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 180, name
        assert job.get("permissions", {"id-token": "write"}) == {"id-token": "write"}


def test_only_a_published_release_is_uploaded_by_a_job_of_its_own() -> None:
    jobs = load(ROOT / ".github/workflows/release.yml")["jobs"]
    assert "permissions" not in jobs["build"]
    publish = jobs["publish"]
    assert publish["if"] == "${{ github.event_name == 'release' }}"
    assert publish["environment"]["name"] == "pypi"
    assert not any("run" in step for step in publish["steps"]), "it only uploads"


def test_the_version_to_cite_is_the_projects(project: dict[str, Any]) -> None:
    citation = load(ROOT / "CITATION.cff")
    assert str(citation["version"]) == project["project"]["version"]
    assert citation["license"] == project["project"]["license"]
    assert citation["repository-code"] == project["project"]["urls"]["Source"]
    assert " ".join(citation["abstract"].split()) == project["project"]["description"]


def test_the_package_knows_its_version(project: dict[str, Any]) -> None:
    assert timmscope.__version__ == project["project"]["version"]


def test_the_source_distribution_holds_the_projects_files(project: dict[str, Any]) -> None:
    listed = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    for path in ROOT.glob("[A-Z]*"):
        assert f"/{path.name}" in listed, path.name


def test_issue_forms_ask_for_something_and_have_distinct_ids() -> None:
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    for path in forms:
        if path.stem != "config":
            form = load(path)
            fields = [field for field in form["body"] if field["type"] != "markdown"]
            ids = [field["id"] for field in fields]
            assert len(set(ids)) == len(ids)
            assert all(field["attributes"]["label"] for field in fields)
            assert any(field.get("validations", {}).get("required") for field in fields)
            assert {"name", "description"} <= form.keys()
