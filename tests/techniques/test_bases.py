"""The lists of bases in the registry, the core, the command line and the suite are the same."""

from __future__ import annotations

from typing import get_args

import pytest

from timmscope.cli.plugins import Base
from timmscope.scaffold import KINDS
from timmscope.techniques.lookup import BASES as CLASSES
from timmscope.testing.subjects import CALLS
from timmscope_registry import BASES, FAMILIES, TechniqueSpec


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
