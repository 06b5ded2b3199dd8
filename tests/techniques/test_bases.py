"""The lists of bases in the registry, the core, the command line and the suite are the same."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from timmscope import technique
from timmscope.cli.plugins import Base
from timmscope.scaffold import KINDS
from timmscope.techniques.lookup import BASES as CLASSES
from timmscope.testing.subjects import CALLS
from timmscope_registry import BASES, FAMILIES, TechniqueSpec, get_registry, set_registry


def test_every_base_has_a_class_a_scaffold_a_choice_and_a_call_in_the_suite() -> None:
    assert list(BASES) == list(CLASSES) == list(CALLS)
    assert list(get_args(Base)) == list(KINDS)
    assert list(KINDS)[: len(BASES)] == list(BASES)


@pytest.mark.parametrize(("base", "families"), BASES.items())
def test_the_class_of_a_base_names_it_and_its_family(base: str, families: tuple[str, ...]) -> None:
    assert CLASSES[base].base == base
    assert CLASSES[base].family in families
    assert set(families) <= set(FAMILIES)


@pytest.mark.parametrize(
    ("family", "base"),
    [("attribution", "attribution"), ("style", "style"), ("representation", "store")],
)
def test_a_spec_has_the_first_base_of_its_family(family: str, base: str) -> None:
    spec = TechniqueSpec(name="a", family=family, summary="", impl="a:b")  # type: ignore[arg-type]
    assert spec.base == base


def test_a_training_has_the_family_that_its_spec_names(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from timmscope import TrainingTechnique\n"
        "from timmscope_registry import TechniqueSpec, hookimpl\n"
        "class Mine(TrainingTechnique):\n"
        "    def build(self, model): return model.trainable_copy()\n"
        "    def loss(self, network, batch, progress): return {}\n"
        "@hookimpl\n"
        "def timmscope_techniques():\n"
        "    yield TechniqueSpec(name='mine', family='style', base='training', summary='Mine.',\n"
        "                        impl=f'{__name__}:Mine')\n"
    )
    get_registry().load_file(tmp_path / "mine.py")
    try:
        assert technique("mine").family == "style"
        assert technique("adversarial-training").family == "defence"
    finally:
        set_registry(None)
