"""The plugin packages export their technique and result classes, and import them when used."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

from timmscope import Result, Technique, technique
from timmscope_registry import get_registry

FAMILIES = ("attribution", "synthesis", "attack", "defence", "style", "representation")
LISTING = """
import sys
from timmscope_registry import get_registry
import timmscope_attack, timmscope_attribution, timmscope_defence, timmscope_representation
import timmscope_style, timmscope_synthesis
names = dir(timmscope_attribution) + dir(timmscope_representation)
assert "GradCAM" in names and "Embedding" in names
assert len(get_registry().techniques()) > 30
print(*sys.modules)
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_each_technique_and_result_is_exported_under_its_name(family: str) -> None:
    package = importlib.import_module(f"timmscope_{family}")
    listed = [
        entry
        for entry in get_registry().techniques()
        if entry.spec.impl.startswith(f"{package.__name__}.")
    ]
    assert listed
    expected = {entry.spec.impl.rpartition(":")[2]: technique(entry.id) for entry in listed}
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, type) and issubclass(value, Result):
                expected |= {name: value} if value.__module__ == module.name else {}
    assert sorted(package.__all__) == sorted(expected)
    for name, value in expected.items():
        assert getattr(package, name) is value
        assert issubclass(value, Technique | Result)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    import timmscope_attribution

    with pytest.raises(AttributeError, match="GradCamera"):
        _ = timmscope_attribution.GradCamera  # type: ignore[attr-defined]


def test_importing_and_listing_them_imports_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LISTING], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {"torch", "numpy", "pydantic", "matplotlib"} & set(done.stdout.split()) == set()
